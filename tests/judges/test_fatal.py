"""What would meet every request stops after one request, in one line with what to do."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges.endpoint import Endpoint
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.locks import Locks
from kvfidelity.judges.online import OnlineClient
from kvfidelity.judges.requests import Limits, Request
from kvfidelity.judges.store import AnswerStore
from tests.judges.server import Reply, Server, completion, good
from tests.judges.test_llm import _key as _key
from tests.judges.test_llm import error, judge, row
from tests.waiting import LIMIT_S

PRICED = {"price": {"input": 1000.0, "output": 1000.0}}
PAGE = (b"<!DOCTYPE html><html><body>Log in</body></html>", {"Content-Type": "text/html"})


def typed(status: int, **fields: object) -> Reply:
    return status, {}, json.dumps({"error": fields}).encode()


FATAL: list[tuple[Reply, str]] = [
    (
        typed(
            400,
            message="Unsupported value: 'temperature' does not support 0 with this model.",
            param="temperature",
            code="unsupported_value",
        ),
        "set `temperature: null`",
    ),
    (
        typed(
            400,
            message="Unsupported parameter: 'temperature' is not supported with this model.",
            code="unsupported_parameter",
        ),
        "set `temperature: null`",
    ),
    (
        error(400, "Unsupported parameter: 'max_completion_tokens'; use 'max_tokens' instead"),
        "tokens_parameter: max_tokens",
    ),
    (
        error(422, '[{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"]}]'),
        "tokens_",
    ),
    (error(400, "Unrecognized request argument supplied: reasoning_effort"), "`reasoning_effort`"),
    (error(400, "Invalid schema for response_format"), "answer_format: object"),
    (error(400, "The model `local` does not exist", "model_not_found"), "it has no 'local'"),
    (error(400, "local is not a valid model ID"), "it has no 'local'"),
    (error(401, "Incorrect API key"), "api_key_env"),
    (error(403, "Country not supported"), "api_key_env"),
    (error(402, "Insufficient Balance"), "no credit left"),
    (error(404, "no such model"), "it has no 'local'"),
    (error(405, "Method Not Allowed"), "correct `base_url`"),
    (error(410, "Gone"), "correct `base_url`"),
    ((413, {}, b"Request Entity Too Large"), "context_tokens"),
    (error(422, "Unprocessable"), "it refuses the request"),
    (error(429, "You exceeded your current quota", "insufficient_quota"), "no credit left"),
    (typed(429, message="x", type="insufficient_quota", code=None), "no credit left"),
    (typed(429, message="not active", code="billing_not_active"), "no credit left"),
    (
        typed(429, message="litellm.RateLimitError: You exceeded your current quota", code="429"),
        "no credit left",
    ),
    (
        error(429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000"),
        "context_tokens",
    ),
    ((200, PAGE[1], PAGE[0]), "a web page came back"),
    ((401, PAGE[1], PAGE[0]), "a web page came back"),
    ((404, PAGE[1], PAGE[0]), "a web page came back"),
    ((302, {"Location": "/v1/chat/completions"}, b""), "it redirects to"),
    ((307, {"Location": "https://elsewhere.example/v1"}, b""), "elsewhere.example"),
    ((308, {}, b""), "it redirects to nowhere"),
    ((501, {}, b"{}"), "correct `base_url`"),
    ((200, {}, b'{"error": {"message": "no such key", "code": 401}}'), "api_key_env"),
    ((200, {}, b'{"error": {"message": "out of credit", "code": "402"}}'), "no credit left"),
]


@pytest.mark.parametrize(("answer", "remedy"), FATAL)
def test_one_request_is_enough(tmp_path: Path, answer: Reply, remedy: str) -> None:
    with (
        Server(lambda *_: answer) as server,
        pytest.raises(UserError) as caught,
    ):
        judge(server, tmp_path, pace=PRICED).judge([row(turn) for turn in range(9)])
    text = str(caught.value)
    assert remedy in text and text.startswith("judge mine: ") and "\n" not in text
    assert len(server.requests) == 1
    assert AnswerStore(tmp_path).spent("mine") == 0


def test_jobs_at_the_same_time_send_one_request_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is first; the others wait for its answer, and stop with what stopped it."""
    asking = threading.Barrier(4)
    acquire = Locks.acquire

    def wait_for_all(self: Locks, name: str, *, wait: bool = True) -> bool:
        if name.startswith("first of "):
            asking.wait(LIMIT_S)
        return acquire(self, name, wait=wait)

    monkeypatch.setattr(Locks, "acquire", wait_for_all)
    # Threads of one process are told apart by one store, processes by the kernel.
    store, limits = AnswerStore(tmp_path), Limits()

    def stopped_jobs(server: Server) -> list[str]:
        entry = with_defaults({"model": "m", "base_url": server.url, "api_key_env": "TEST_KEY"})

        def job(number: int) -> str:
            client = OnlineClient(lambda: Endpoint("mine", entry, limits), store, limits)
            body = {"model": "m", "messages": [], "max_tokens": 9, "seed": number}
            with pytest.raises(UserError) as caught:
                client.complete([Request(body)])
            return str(caught.value)

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(job, range(4)))

    with Server(lambda *_: error(401, "Incorrect API key")) as server:
        told = stopped_jobs(server)
        assert len(set(told)) == 1 and "api_key_env" in told[0]
        assert len(server.requests) == 1
        stopped_jobs(server)  # a later run asks again
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "key",
    ["sk-1\nX-Evil: 1", "sk 1", "sk-\u00e9", "sk-\u20281", "sk-1\r\n2", "a\tb", "\x7fkey", "k\x00"],
)
def test_a_key_that_no_endpoint_takes_is_refused_unsent_and_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("os.environ", {"TEST_KEY": key})
    with Server(lambda *_: good()) as server, pytest.raises(UserError) as caught:
        judge(server, tmp_path).judge([row(0)])
    assert "the key in TEST_KEY has a line break" in str(caught.value)
    assert key not in str(caught.value) and server.requests == []


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_an_empty_key_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("os.environ", {"TEST_KEY": key})
    with Server(lambda *_: good()) as server, pytest.raises(UserError, match="needs its key"):
        judge(server, tmp_path).judge([row(0)])
    assert server.requests == []


@pytest.mark.parametrize("key", [" sk-1\n", "sk-1\r\n", "sk-1"])
def test_what_a_shell_or_a_file_puts_around_a_key_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("os.environ", {"TEST_KEY": key})
    with Server(lambda *_: good()) as server:
        assert judge(server, tmp_path).judge([row(0)])[0].status == "ok"
    assert server.keys == ["Bearer sk-1"]


SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with https://"),
        ("host:8000/v1", "must begin with https://"),
        ("host/v1", "must begin with https://"),
        ("//host/v1", "must begin with https://"),
        ("ftp://host/v1", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("javascript:alert(1)", "must begin with https://"),
        ("https://", "names no host"),
        ("http:///v1", "names no host"),
        ("https://host:99999/v1", "its port is not valid"),
        ("https://host:x/v1", "its port is not valid"),
        ("https://[::1/v1", "its host is not valid"),
        ("https://ex..ample/v1", "no valid host name"),
        (f"https://{'a' * 64}.example/v1", "no valid host name"),
        ("https://host/v1\n", "line break"),
        ("https://ho st/v1", "a space"),
        ("https://host/v1\u2028", "line break"),
        ("https://host/\x00v1", "such character"),
        (f"https://user:{SECRET}@host/v1", "a user name or a password"),
        (f"https://{SECRET}@host/v1", "a user name or a password"),
        (f"https://host/v1?key={SECRET}", "a part after `?` or `#`"),
        (f"https://host/v1#{SECRET}", "a part after `?` or `#`"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, message: str) -> None:
    with Server(lambda *_: good()) as server, pytest.raises(UserError) as caught:
        judge(server, tmp_path, base_url=url).judge([row(0)])
    text = str(caught.value)
    assert text.startswith("judge mine: base_url: ") and message in text and "\n" not in text
    assert SECRET not in text and server.requests == []
    assert AnswerStore(tmp_path).spent("mine") == 0


@pytest.mark.parametrize("form", ["{}", "{}/", "HTTP{}", "localhost"])
def test_forms_of_an_address_reach_the_endpoint(tmp_path: Path, form: str) -> None:
    with Server(lambda *_: good()) as server:
        url = {
            "{}": server.url,
            "{}/": f"{server.url}/",
            "HTTP{}": server.url.replace("http", "HTTP", 1),
            "localhost": server.url.replace("127.0.0.1", "localhost"),
        }[form]
        assert judge(server, tmp_path, base_url=url).judge([row(0)])[0].status == "ok"
    assert server.paths == ["/v1/chat/completions"]


def test_a_variable_does_not_send_requests_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(lambda *_: good()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(UserError, match="OPENAI_BASE_URL is set and the judge has no"):
            judge(server, tmp_path, base_url=None).judge([row(0)])
    assert server.requests == []


def test_another_endpoint_is_asked_for_itself(tmp_path: Path) -> None:
    with Server(lambda *_: good(3)) as one, Server(lambda *_: good(9)) as other:
        assert judge(one, tmp_path).judge([row(0)])[0].score == 3
        assert judge(other, tmp_path).judge([row(0)])[0].score == 9


@pytest.mark.parametrize(
    "refusal",
    [
        typed(400, message="filtered by Azure's content management policy", code="content_filter"),
        typed(403, message="flagged by moderation"),
    ],
)
def test_a_filtered_prompt_is_refused_free_of_charge_and_kept(
    tmp_path: Path, refusal: Reply
) -> None:
    with Server(lambda number, _: good() if number else refusal) as server:
        remote = judge(server, tmp_path, pace=PRICED)
        found = [verdict.status for verdict in remote.judge([row(0), row(1)])]
        assert judge(server, tmp_path, pace=PRICED).judge([row(0)])[0].status == "refused"
    assert found == ["refused", "ok"] and len(server.requests) == 2
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(0.12)


def test_a_text_that_is_too_long_is_one_failure_with_what_to_do(tmp_path: Path) -> None:
    long = error(400, "maximum context length is 8 tokens", "context_length_exceeded")
    with Server(lambda number, _: good() if number else long) as server:
        found = judge(server, tmp_path).judge([row(0), row(1)])
    assert [verdict.status for verdict in found] == ["failed", "ok"]
    assert "context_tokens" in (found[0].reason or "")


def test_failures_of_one_kind_and_no_answer_stop_a_job(tmp_path: Path) -> None:
    with (
        Server(lambda *_: error(400, "something odd")) as server,
        pytest.raises(UserError, match="3 requests got this and none was answered"),
    ):
        judge(server, tmp_path).judge([row(turn) for turn in range(9)])
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("model", "temperature", "tokens"),
    [
        ("gpt-4o", 0, 99),
        ("gpt-5-mini", None, 4099),
        ("openai/gpt-5.1", None, 4099),
        ("o4-mini", None, 4099),
        ("gpt-5-chat-latest", None, 99),
        ("openai/gpt-oss-20b", 0, 4099),
        ("deepseek-reasoner", 0, 4099),
        ("Qwen/Qwen3-4B-Thinking", 0, 4099),
        ("mistral-large", 0, 99),
    ],
)
def test_each_family_is_asked_for_what_it_accepts(
    tmp_path: Path, model: str, temperature: float | None, tokens: int
) -> None:
    with Server(lambda *_: good()) as server:
        judge(server, tmp_path, model=model).judge([row(0)])
        judge(server, tmp_path, model=model, temperature=0.7, reasoning_tokens=5).judge([row(0)])
    first, second = server.requests
    assert first.get("temperature") == temperature
    assert first["max_completion_tokens"] == tokens
    assert (second["temperature"], second["max_completion_tokens"]) == (0.7, 104)
    assert "reasoning_effort" not in first


def test_reasoning_is_asked_for_and_counted_in_the_cost(tmp_path: Path) -> None:
    _, _, raw = completion('{"reason": "x", "score": 7}')
    content = json.loads(raw or b"")
    content["usage"] = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "completion_tokens_details": {"reasoning_tokens": 300},
        "total_tokens": 420,  # so they are not part of the 20
    }
    with Server(lambda *_: (200, {}, json.dumps(content).encode())) as server:
        changes = {"reasoning_effort": "low", "tokens_parameter": "max_tokens"}
        [verdict] = judge(server, tmp_path, pace=PRICED, **changes).judge([row(0)])
    [request] = server.requests
    assert request["reasoning_effort"] == "low" and request["max_tokens"] == 99
    assert (verdict.completion_tokens, verdict.reasoning_tokens) == (320, 300)
    assert verdict.cost_usd == pytest.approx(0.42)
