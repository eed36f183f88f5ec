"""Every line of a batch's files: what was paid for is kept, what may have been is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges.store import AnswerStore
from kvfidelity.judges.verdict import Verdict
from tests.judges.batch_server import BatchServer, Line, done, wrong
from tests.judges.server import Reply
from tests.judges.test_batch import _key as _key
from tests.judges.test_batch import judge, row, sent

PACE = {"poll_s": 0.001}
COST = 0.06  # of a whole answer, from its tokens


def answered(**changes: Any) -> Line:
    """A line with a verdict whose envelope is changed; a key that is set to `...` is left out."""
    kind, line = done(7)
    about = line["response"] | {k: v for k, v in changes.items() if k != "error"}
    about = {name: value for name, value in about.items() if value is not ...}
    return kind, {"response": about, "error": changes.get("error")}


def failed(status: Any, body: Any = None, error: Any = None) -> Line:
    return "error", {"response": {"status_code": status, "body": body}, "error": error}


#: Lines that hold a verdict.
VERDICTS: dict[str, Line] = {
    "as written": answered(),
    "its status is a text": answered(status_code="200"),
    "its status is a decimal": answered(status_code=200.0),
    "its status is 201": answered(status_code=201),
    "no status": answered(status_code=...),
    "its status is null": answered(status_code=None),
    "its status is true": answered(status_code=True),
    "its status is 0": answered(status_code=0),
    "its status is an error's": answered(status_code=500),
    "an error of nulls": answered(error={"code": None, "message": None}),
    "an empty error": answered(error={}),
    "an error that says nothing": answered(error={"message": "", "details": [{}]}),
    "an error with words": answered(error={"message": "a warning"}),
    "an error that is a text": answered(error="none"),
    "more fields": answered(request_id=["x"], more=1),
    "in the error file": ("error", done(7)[1]),
}


def verdicts(store: Path, line: Line, end: str = "completed") -> list[Verdict]:
    """Two verdicts: one from the line, and one that is as it should be."""
    with BatchServer(lambda t: line if "Question 1." in t else done(), end=end, looks=1) as server:
        found = judge(server.url, store, PACE).judge([row(0), row(1)])
        assert judge(server.url, store, PACE).judge([row(0), row(1)]) == found
        assert len(sent(server)) == 2
    return found


@pytest.mark.parametrize("name", VERDICTS)
def test_a_line_with_a_verdict_is_kept_at_its_cost(tmp_path: Path, name: str) -> None:
    found = verdicts(tmp_path, VERDICTS[name])[1]
    assert (found.score, found.cost_usd) == (7, pytest.approx(COST))
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(2 * COST)


USAGE = {"prompt_tokens": 90, "completion_tokens": 0, "total_tokens": 90}
#: Lines without a verdict, whether they may have been charged, and words of their reason.
OTHERS: dict[str, tuple[Line, bool, str]] = {
    "400": (failed(400, {"error": {"message": "no words"}}), False, "status 400: no words"),
    "500": (failed(500, {"error": {"message": "oops"}}), False, "status 500: oops"),
    "500 as text": (failed("500", {"error": {"message": "oops"}}), False, "status 500: oops"),
    "504": (failed(504, {"error": {"message": "timeout"}}), True, "status 504: timeout"),
    "502 as text": (failed("502", {"error": {"message": "x"}}), True, "status 502"),
    "408": (failed(408, None), True, "status 408"),
    "524": (failed(524, "<html>"), True, "status 524"),
    "400 with tokens": (
        failed(400, {"error": {"message": "cut"}, "usage": USAGE}),
        True,
        "status 400: cut",
    ),
    "an error with tokens in its body": (
        failed(400, {"usage": USAGE}, {"message": "cut"}),
        True,
        "status 400: cut",
    ),
    "400 with no tokens": (
        failed(400, {"error": {"message": "cut"}, "usage": {"total_tokens": 0}}),
        False,
        "status 400: cut",
    ),
    "200 with an error": (
        failed(200, {"error": {"message": "busy", "code": 503}}),
        False,
        "status 503: busy",
    ),
    "200 with an error and tokens": (
        failed(200, {"error": {"message": "busy"}, "choices": [], "usage": USAGE}),
        True,
        "status 400: busy",
    ),
    "expired": (
        ("error", {"response": None, "error": {"code": "batch_expired", "message": "too late"}}),
        False,
        "too late",
    ),
    "an error as text": (("error", {"error": "no such request"}), False, "no such request"),
    "an error with an odd status": (failed("ok", None, {"message": "lost"}), True, "lost"),
    "an error with status 200": (failed(200, None, {"message": "lost"}), True, "lost"),
    "an odd status": (failed(999, {"error": {"message": "x"}}), True, "status 999"),
    "a status that is a list": (failed([500], None), True, "status [500]"),
    "a status without an end": (failed(float("inf"), None), True, "status Infinity"),
    "neither": (("output", {}), True, "neither an answer nor an error"),
    "a response that is a list": (("output", {"response": [1]}), True, "neither an answer"),
    "a response that is a text": (("output", {"response": "x"}), True, "neither an answer"),
    "no body": (answered(body=...), True, "no chat completion"),
    "a body that is null": (answered(body=None), True, "no chat completion"),
    "a body that is a list": (answered(body=[1]), True, "no chat completion"),
    "a body that is a text": (answered(body="yes"), True, "no chat completion"),
    "an empty body": (answered(body={}), True, "no chat completion"),
    "no choices": (answered(body={"choices": []}), True, "no chat completion"),
    "choices that are null": (answered(body={"choices": [None]}), True, "no chat completion"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_line_without_a_verdict_is_missing_and_counted_if_it_may_be_charged(
    tmp_path: Path, name: str
) -> None:
    line, charged, reason = OTHERS[name]
    found = verdicts(tmp_path, line)[1]
    assert found.score is None and found.status in ("failed", "unparsable")
    assert reason in (found.reason or "")
    possible = found.possible_usd or 0.0
    assert (possible > 0.04) == charged and (charged or possible == 0)
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(COST + possible)


@pytest.mark.parametrize("charged", [True, False])
def test_a_refusal_of_a_filter_counts_if_it_says_its_tokens(tmp_path: Path, charged: bool) -> None:
    body = {"error": {"message": "filtered", "code": "content_filter"}}
    line = failed(400, body | ({"usage": USAGE} if charged else {}))
    found = verdicts(tmp_path, line)[1]
    assert found.status == "refused"
    spent = AnswerStore(tmp_path).spent("mine")
    assert spent == pytest.approx(COST + (found.possible_usd or 0)) and (spent > 0.1) == charged


@pytest.mark.parametrize(
    ("end", "counts", "charged"),
    [
        ("completed", None, True),
        ("completed", {"total": 2, "completed": 1, "failed": 1}, True),
        ("expired", None, False),
        ("expired", {"total": 2, "completed": 1, "failed": 0}, False),
        ("expired", {"total": 2, "completed": 2, "failed": 0}, True),
        ("cancelled", {"total": 2, "completed": 2, "failed": 0}, True),
        ("cancelled", None, False),
    ],
)
def test_a_request_without_a_line_counts_unless_its_batch_ended_before_it(
    tmp_path: Path, end: str, counts: dict[str, int] | None, charged: bool
) -> None:
    def answer(step: str, body: bytes) -> Reply:
        if step == "look" and counts:
            body = json.dumps(json.loads(body) | {"request_counts": counts}).encode()
        return 200, {}, body

    def behave(text: str) -> Line:
        return None if "Question 1." in text else done()

    with BatchServer(behave, end=end, looks=1, answer=answer) as server:
        found = judge(server.url, tmp_path, PACE).judge([row(0), row(1)])
    assert [verdict.score for verdict in found] == [7, None]
    assert found[1].reason == f"not answered: the batch is {end}"
    possible = found[1].possible_usd or 0.0
    assert (possible > 0.04) == charged and (charged or possible == 0)
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(COST + possible)


def without(*names: str) -> Any:
    def changed(body: bytes) -> bytes:
        return json.dumps({k: v for k, v in json.loads(body).items() if k not in names}).encode()

    return changed


FILES = ("output_file_id", "error_file_id")
#: What a call gives instead of its right body, so that no line of a completed batch can be read.
LACKING: dict[str, tuple[str, Any]] = {
    "no file": ("look", without(*FILES)),
    "files that are null": (
        "look",
        lambda body: json.dumps(json.loads(body) | dict.fromkeys(FILES)).encode(),
    ),
    "an empty file": ("download", lambda _: b""),
    "a file of blanks": ("download", lambda _: b"\n \r\n"),
    "a page": ("download", lambda _: b"<html>\nlog in\n</html>"),
    "a file that is cut off": ("download", lambda body: body[: body.index(b"\n") // 2]),
    "a file of nulls": ("download", lambda _: b"null\n" * 2),
    "another batch's lines": (
        "download",
        lambda body: body.replace(b'"custom_id": "', b'"custom_id": "x'),
    ),
    "keys that are numbers": ("download", lambda _: b'{"custom_id": 7}\n'),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_completed_batch_without_a_line_stays_open_until_its_answers_are_fetched(
    tmp_path: Path, name: str
) -> None:
    where, change = LACKING[name]

    def answer(step: str, body: bytes) -> Reply:
        return 200, {}, change(body) if step == where else body

    with BatchServer(looks=1, answer=answer) as server:
        for _ in range(2):
            with pytest.raises(UserError, match="is completed and gives no answer that can be"):
                judge(server.url, tmp_path, PACE).judge([row(0), row(1)])
        assert AnswerStore(tmp_path).spent("mine") > 2 * COST
        server.answer = lambda _, body: (200, {}, body)
        found = judge(server.url, tmp_path, PACE).judge([row(0), row(1)])
    assert [verdict.score for verdict in found] == [7, 7]
    assert len(server.batches) == 1
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(2 * COST)


@pytest.mark.parametrize("where", ["look", "download"])
def test_files_that_come_later_than_the_batchs_end_are_waited_for(
    tmp_path: Path, where: str
) -> None:
    """The first look at a completed batch names no file, or the first download breaks off."""

    def answer(step: str, body: bytes) -> Reply:
        if step != where or server.steps.count(step) > 1:
            return 200, {}, body
        return 200, {}, without(*FILES)(body) if step == "look" else body[: body.index(b"\n") + 9]

    with BatchServer(looks=1, answer=answer) as server:
        found = judge(server.url, tmp_path, PACE).judge([row(0), row(1)])
    assert [verdict.score for verdict in found] == [7, 7]
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(2 * COST)


def test_of_two_lines_the_first_counts_and_an_answer_before_an_error(tmp_path: Path) -> None:
    def answer(step: str, body: bytes) -> Reply:
        if step == "download":
            lines = body.splitlines()
            key = {"custom_id": json.loads(lines[0])["custom_id"]}
            error = json.dumps(key | wrong("no")[1]).encode()
            other = json.dumps(key | done(2)[1]).encode()
            body = b"\n".join([error, *lines, other])
        return 200, {}, body

    with BatchServer(looks=1, answer=answer) as server:
        found = judge(server.url, tmp_path, PACE).judge([row(0), row(1)])
    assert [verdict.score for verdict in found] == [7, 7]


def test_an_envelope_that_gives_a_key_twice_loses_no_answer(tmp_path: Path) -> None:
    def answer(step: str, body: bytes) -> Reply:
        if step == "download":
            body = body.replace(b'"usage": ', b'"usage": null, "usage": ')
            body = body.replace(b'"status_code": ', b'"status_code": 500, "status_code": ')
        return 200, {}, body

    with BatchServer(looks=1, answer=answer) as server:
        [found] = judge(server.url, tmp_path, PACE).judge([row(0)])
    assert (found.score, found.cost_usd) == (7, pytest.approx(COST))


def test_what_all_got_stops_nothing_if_it_was_charged(tmp_path: Path) -> None:
    body = {"error": {"message": "unsupported temperature", "param": "temperature"}}
    line = failed(400, body | {"usage": USAGE})
    with BatchServer(lambda _: line, looks=1) as server:
        found = judge(server.url, tmp_path, PACE).judge([row(0), row(1)])
    spent = AnswerStore(tmp_path).spent("mine")
    assert spent == pytest.approx(sum(v.possible_usd or 0 for v in found)) and spent > 0.08
