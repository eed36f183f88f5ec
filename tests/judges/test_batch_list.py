"""A batch whose creation broke off is looked up in lists of any form, and never created twice."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges import batch_api
from tests.judges.batch_server import BatchServer
from tests.judges.server import Reply
from tests.judges.test_batch import _key as _key
from tests.judges.test_batch import judge, row, sent

Page = dict[str, Any]
#: The seconds of 2020: other batches of the account are older than any clock is wrong.
OLD = 1_577_836_800


def others(number: int, **changes: Any) -> list[Page]:
    """Batches of the account that another program created."""
    about = {"object": "batch", "status": "completed", "created_at": OLD, "metadata": None}
    return [{"id": f"other{n}", "input_file_id": f"of{n}"} | about | changes for n in range(number)]


def whole(entries: list[Any], **more: Any) -> bytes:
    return json.dumps({"object": "list", "data": entries} | more).encode()


def shuffled(ours: list[Page]) -> list[Page]:
    entries = [*others(9), *ours, *others(9, created_at=OLD * 2)]
    random.Random(1).shuffle(entries)
    return entries


#: Lists that hold our batch, from the list of our batches.
FOUND: dict[str, Callable[[list[Page]], bytes]] = {
    "the oldest first": lambda ours: whole([*others(3), *ours], has_more=False),
    "in no order": lambda ours: whole(shuffled(ours), has_more=False),
    "has_more is missing": lambda ours: whole([*others(3), *ours]),
    "has_more is a text": lambda ours: whole([*others(3), *ours], has_more="no"),
    "created_at is null": lambda ours: whole([*others(2, created_at=None), *ours], has_more=False),
    "created_at is a text": lambda ours: whole(others(2, created_at="x") + ours, has_more=False),
    "metadata is a list": lambda ours: whole(others(2, metadata=["a"]) + ours, has_more=False),
    "metadata is a text": lambda ours: whole(others(2, metadata="kvf") + ours, has_more=False),
    "an entry is null": lambda ours: whole([None, *ours], has_more=False),
    "an entry is a list": lambda ours: whole([[], *ours], has_more=False),
    "an id is a number": lambda ours: whole(others(2, id=7) + ours, has_more=False),
    "ours has no metadata": lambda ours: whole(
        [*others(1), *(batch | {"metadata": None} for batch in ours)], has_more=False
    ),
    "ours has another name of its file": lambda ours: whole(
        [*others(1), *(batch | {"input_file_id": 3} for batch in ours)], has_more=False
    ),
    "a byte-order mark": lambda ours: b"\xef\xbb\xbf" + whole(ours, has_more=False),
}

#: Lists that do not tell whether the batch was taken.
UNCLEAR: dict[str, Callable[[list[Page]], bytes]] = {
    "a page": lambda _: b"<html>log in</html>",
    "cut off": lambda ours: whole(ours)[:-9],
    "null": lambda _: b"null",
    "a list": lambda ours: json.dumps(ours).encode(),
    "a text": lambda _: b'"none"',
    "an object without data": lambda _: b"{}",
    "data is null": lambda _: whole(None, has_more=False),  # type: ignore[arg-type]
    "data is an object": lambda _: whole({}, has_more=False),  # type: ignore[arg-type]
    "only an entry that is null": lambda _: whole([None], has_more=False),
    "ours without its id": lambda ours: whole(
        [{k: v for k, v in batch.items() if k != "id"} for batch in ours], has_more=False
    ),
    "entries without name and file": lambda _: whole(
        others(2, metadata=None, input_file_id=None), has_more=False
    ),
    "it has more and no data": lambda _: whole([], has_more=True),
    "the same page for ever": lambda _: whole(others(2), has_more=True),
    "nested without an end": lambda _: b"[" * 100_000,
}


def lists(change: Callable[[list[Page]], bytes]) -> Callable[[str, bytes], Reply]:
    """The first creation is taken and answered with 502; lists are what `change` makes of them."""
    creations = itertools.count()

    def answer(step: str, body: bytes) -> Reply:
        if step == "create" and next(creations) == 0:
            return 502, {}, b"<html>bad gateway</html>"
        return 200, {}, change(json.loads(body)["data"]) if step == "list" else body

    return answer


@pytest.mark.parametrize("name", FOUND)
def test_a_batch_is_found_in_a_list(tmp_path: Path, name: str) -> None:
    with BatchServer(answer=lists(FOUND[name])) as server:
        found = judge(server.url, tmp_path).judge([row(0), row(1)])
    assert [verdict.score for verdict in found] == [7, 7]
    assert len(server.batches) == 1 and len(sent(server)) == 2


@pytest.mark.parametrize("name", UNCLEAR)
def test_a_list_that_does_not_tell_sends_nothing_again(tmp_path: Path, name: str) -> None:
    pace = {"poll_s": 0.001}
    with BatchServer(answer=lists(UNCLEAR[name])) as server:
        for _ in range(2):
            with pytest.raises(UserError, match=r"whether it was taken is not known: .*run again"):
                judge(server.url, tmp_path, pace).judge([row(0)])
        server.answer = lambda _, body: (200, {}, body)
        assert judge(server.url, tmp_path, pace).judge([row(0)])[0].score == 7
    assert len(server.batches) == 1


def test_a_list_of_many_pages_is_read_to_its_end_and_an_endless_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "PAGE", 2)
    monkeypatch.setattr(batch_api, "MAX_PAGES", 4)
    count = itertools.count()

    def endless(_: list[Page]) -> bytes:
        return whole([{"id": f"x{next(count)}", "input_file_id": "y"}], has_more=True)

    for number, length in enumerate((7, 8)):
        with BatchServer(answer=lists(lambda ours: whole(ours))) as server:
            page = server.page

            def with_newer(
                after: str, limit: int, page: Any = page, server: Any = server, n: int = length
            ) -> Page:
                if len(server.batches) == 1:
                    server.batches.extend(others(n))
                return dict(page(after, limit))

            monkeypatch.setattr(server, "page", with_newer)
            store = tmp_path / str(number)
            if length == 7:  # ours is the eighth, at the end of the fourth page
                assert judge(server.url, store).judge([row(0)])[0].score == 7
            else:
                with pytest.raises(UserError, match="has more than 8 entries"):
                    judge(server.url, store, {"poll_s": 0.001}).judge([row(0)])
    with BatchServer(answer=lists(endless)) as server:
        with pytest.raises(UserError, match="has more than 8 entries"):
            judge(server.url, tmp_path / "endless", {"poll_s": 0.001}).judge([row(0)])
        assert len(server.batches) == 1


def test_a_batch_that_the_list_does_not_hold_is_sent_again(tmp_path: Path) -> None:
    def answer(step: str, body: bytes) -> Reply:
        return (502, {}, b"") if step == "create" and len(server.batches) == 1 else (200, {}, body)

    pace = {"poll_s": 0.001}
    with BatchServer(answer=answer) as server:
        page = server.page
        server.page = lambda after, limit: listing(others(3))  # type: ignore[method-assign]
        with pytest.raises(UserError, match="does not list the batch"):
            judge(server.url, tmp_path, pace).judge([row(0)])
        server.page = page  # type: ignore[method-assign]
        server.batches[0] |= {"metadata": {}, "input_file_id": "gone"}  # it was not ours
        assert judge(server.url, tmp_path, pace).judge([row(0)])[0].score == 7
    assert len(server.batches) == 2


def listing(entries: list[Page]) -> Page:
    return {"object": "list", "data": entries, "has_more": False}
