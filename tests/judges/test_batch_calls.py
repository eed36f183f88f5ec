"""Whatever a call of the Batch API gives: one line at most, and nothing is paid for twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges.store import AnswerStore
from tests.judges.batch_server import BatchServer
from tests.judges.server import Reply
from tests.judges.test_batch import _key as _key
from tests.judges.test_batch import judge, row, sent

PACE = {"poll_s": 0.001}
#: Bodies with status 200 that are not what any call gives.
BODIES: dict[str, bytes] = {
    "a page": b"<html>log in</html>",
    "cut off": b'{"id": "x", "status": ',
    "nothing": b"",
    "null": b"null",
    "a list": b"[1]",
    "a text": b'"completed"',
    "a number": b"1" * 5000,
    "an empty object": b"{}",
    "an id that is null": b'{"id": null, "status": "completed"}',
    "an id that is a list": b'{"id": ["x"], "status": "completed"}',
    "an empty id": b'{"id": "", "status": "completed"}',
    "nested without an end": b'{"id":' + b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
}
#: States of a batch that say neither that it goes on nor that it ended.
STATUSES: tuple[Any, ...] = (None, "", "COMPLETED", "done", ["completed"], {}, 7, True)


def at(step: str, body: bytes, times: float) -> Any:
    """The answers of a server that gives a body at a step, so many times."""
    count = itertools.count()

    def answer(here: str, right: bytes) -> Reply:
        return 200, {}, body if here == step and next(count) < times else right

    return answer


@pytest.mark.parametrize("step", ["upload", "create", "look"])
@pytest.mark.parametrize("name", BODIES)
def test_an_odd_body_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path, step: str, name: str
) -> None:
    with BatchServer(looks=1, answer=at(step, BODIES[name], float("inf"))) as server:
        for _ in range(1 if step == "create" else 2):
            if step == "create":  # it was taken, and the list says so
                assert judge(server.url, tmp_path, PACE).judge([row(0)])[0].score == 7
            else:
                with pytest.raises(UserError, match=r"the Batch API .*run again") as caught:
                    judge(server.url, tmp_path, PACE).judge([row(0)])
                assert "\n" not in str(caught.value)
        server.answer = lambda _, body: (200, {}, body)
        assert judge(server.url, tmp_path, PACE).judge([row(0)])[0].score == 7
    assert len(sent(server)) == 1
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(0.06)


@pytest.mark.parametrize("name", ["a page", "null", "cut off"])
def test_one_odd_look_at_a_batch_is_passed_over(tmp_path: Path, name: str) -> None:
    with BatchServer(looks=3, answer=at("look", BODIES[name], 2)) as server:
        assert judge(server.url, tmp_path, PACE).judge([row(0)])[0].score == 7


@pytest.mark.parametrize("status", STATUSES, ids=repr)
def test_a_status_that_is_unknown_is_not_waited_for(tmp_path: Path, status: Any) -> None:
    def answer(step: str, body: bytes) -> Reply:
        if step == "look":
            body = json.dumps(json.loads(body) | {"status": status}).encode()
        return 200, {}, body

    with BatchServer(looks=1, answer=answer) as server:
        with pytest.raises(UserError, match=r"the status .* which is unknown.*run again"):
            judge(server.url, tmp_path, PACE).judge([row(0)])
        server.answer = lambda _, body: (200, {}, body)
        assert judge(server.url, tmp_path, PACE).judge([row(0)])[0].score == 7
    assert len(sent(server)) == 1


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({"data": [{"message": "too large"}, {"message": "odd"}]}, "too large; odd"),
        ({"data": [None, 7, {"message": ["x"]}, "text"]}, "text"),
        ([{"message": "a list"}], "a list"),
        ("a text", "a text"),
        ({"data": "words"}, "words"),
        ({"data": {"message": "one"}}, "one"),
        ({"data": None}, "no reason given"),
        (None, "no reason given"),
        (3, "no reason given"),
    ],
)
def test_the_reason_of_a_failed_batch_is_read_in_any_form(
    tmp_path: Path, errors: Any, reason: str
) -> None:
    def answer(step: str, body: bytes) -> Reply:
        if step == "look":
            body = json.dumps(json.loads(body) | {"errors": errors}).encode()
        return 200, {}, body

    with (
        BatchServer(looks=1, end="failed", answer=answer) as server,
        pytest.raises(UserError, match=f"refused a batch: {reason}; correct"),
    ):
        judge(server.url, tmp_path, PACE).judge([row(0)])


@pytest.mark.parametrize("value", [None, 7, [], {"completed": "x"}])
@pytest.mark.parametrize(
    "field", ["output_file_id", "error_file_id", "request_counts", "created_at"]
)
def test_odd_fields_of_a_batch_crash_nothing(tmp_path: Path, field: str, value: Any) -> None:
    def answer(step: str, body: bytes) -> Reply:
        if step == "look":
            body = json.dumps(json.loads(body) | {field: value}).encode()
        return 200, {}, body

    with BatchServer(looks=1, answer=answer) as server:
        try:
            found = judge(server.url, tmp_path, PACE).judge([row(0)])[0].score
        except UserError as error:
            found = None
            assert "gives no answer that can be read" in str(error)
    assert found == (None if field == "output_file_id" else 7)
