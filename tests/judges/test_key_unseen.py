"""An endpoint that repeats the key brings it into no message, no verdict and no file."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kvfidelity.errors import UserError
from tests.judges.batch_server import BatchServer
from tests.judges.server import Reply, Server, completion
from tests.judges.test_batch import judge as batch_judge
from tests.judges.test_batch import row as batch_row
from tests.judges.test_llm import judge, row

KEY = 'sk-canary/0123"456789+abcdef=='
#: No stretch of the key that is this long may be seen.
STRETCH = 8


def body(**changes: Any) -> Reply:
    """A completion whose choice is changed."""
    _, _, raw = completion('{"reason": "x", "score": 7}')
    content = json.loads(raw or b"")
    content["choices"][0] |= changes
    return 200, {}, json.dumps(content).encode()


def message(**changes: Any) -> Reply:
    return body(message={"role": "assistant", "content": None} | changes)


def typed(status: int, **fields: Any) -> Reply:
    return status, {}, json.dumps({"error": fields}).encode()


VERDICT = json.dumps({"reason": f"the key is {KEY}", "score": 7})
CALL = {"type": "function", "function": {"name": "x", "arguments": VERDICT}}
#: Answers that repeat the key, also where a text is cut in the middle of it.
ANSWERS: dict[str, Reply] = {
    "a message": typed(400, message=f"bad {KEY}"),
    "a message that is cut": typed(400, message="x" * 270 + KEY),
    "a fatal message": typed(401, message=f"bad {KEY}"),
    "a parameter": typed(400, message="x", param=KEY, code="unsupported_parameter"),
    "a redirect": (302, {"Location": f"https://other.example/v1?key={KEY}"}, b""),
    "a redirect's path": (307, {"Location": f"https://other.example/{KEY}/v1"}, b""),
    "a redirect's user": (308, {"Location": f"https://{quote(KEY, safe='')}@other.example"}, b""),
    "a redirect that is cut": (302, {"Location": f"https://o/{'x' * 180}{KEY}"}, b""),
    "a redirect that is cut later": (302, {"Location": f"https://o/{'x' * 930}{KEY}"}, b""),
    "text": (400, {}, KEY.encode()),
    "JSON without a message": (400, {}, json.dumps({"said": KEY}).encode()),
    "a filter": typed(400, message=f"flagged {KEY}", code="content_filter"),
    "a finish reason": body(finish_reason=KEY),
    "a finish reason that is cut": body(finish_reason="x" * 90 + KEY),
    "content": message(content=VERDICT),
    "content without a verdict": message(content=KEY),
    "content that is cut": message(content="x" * 1990 + KEY + "y" * 40_000),
    "content in parts": message(content=[{"type": "text", "text": VERDICT}]),
    "a refusal": message(refusal=f"no: {KEY}"),
    "a tool call": message(tool_calls=[CALL]),
    "equal keys": (200, {}, f'{{"a": {json.dumps(KEY)}, "a": 1}}'.encode()),
    "an error in 200": (200, {}, json.dumps({"error": {"message": KEY}}).encode()),
}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def assert_unseen(told: str, store: Path) -> None:
    kept = [file.read_text(errors="replace") for file in store.rglob("*") if file.is_file()]
    for form in (KEY, quote(KEY, safe=""), json.dumps(KEY)[1:-1]):
        for start in range(len(form) - STRETCH + 1):
            assert not any(form[start : start + STRETCH] in text for text in (told, *kept))


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_repeats_the_key(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(lambda *_: ANSWERS[name]) as server:
        try:
            told = str(judge(server, tmp_path).judge([row(0)]))
        except UserError as error:
            told = "".join(traceback.format_exception(error))
    assert server.keys and set(server.keys) == {f"Bearer {KEY}"}
    assert_unseen(told + capsys.readouterr().err, tmp_path)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_line_of_a_batch_that_repeats_the_key(tmp_path: Path, name: str) -> None:
    status, _, raw = ANSWERS[name]
    try:
        content = json.loads(raw or b"null")
    except ValueError:
        content = (raw or b"").decode()
    line = {"response": {"status_code": status, "body": content}, "error": None}
    with BatchServer(lambda _: ("output", line), looks=1) as server:
        try:
            told = str(batch_judge(server.url, tmp_path, {"poll_s": 0.001}).judge([batch_row(0)]))
        except UserError as error:
            told = str(error)
    assert_unseen(told, tmp_path)


@pytest.mark.parametrize("step", ["upload", "create", "look", "list"])
def test_a_call_of_the_batch_api_that_repeats_the_key(tmp_path: Path, step: str) -> None:
    bodies = (
        (200, json.dumps({"id": "x", "status": KEY})),
        (200, json.dumps({"id": "x", "status": "x" * 40 + KEY})),
        (200, json.dumps({"id": "x", "status": "failed", "errors": {"data": [KEY]}})),
        (404, json.dumps({"error": {"message": KEY}})),
        (401, json.dumps({"error": {"message": KEY}})),
        (400, json.dumps({"error": {"message": KEY}})),
    )
    for number, (status, content) in enumerate(bodies):
        if status == 200 and step in ("upload", "create"):
            continue  # an id, whatever it is

        def answer(here: str, right: bytes, status: int = status, content: str = content) -> Reply:
            if here == "create" and step == "list":
                return 502, {}, b""
            return (status, {}, content.encode()) if here == step else (200, {}, right)

        store = tmp_path / str(number)
        with BatchServer(looks=1, answer=answer) as server:
            try:
                told = str(batch_judge(server.url, store, {"poll_s": 0.001}).judge([batch_row(0)]))
            except UserError as error:
                told = str(error)
        assert "judge mine" in told or "score" in told
        assert KEY not in told and KEY[:STRETCH] not in told
