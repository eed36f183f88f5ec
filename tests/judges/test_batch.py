"""The Batch API over real HTTP: submit, wait, partial failures, and crashes at every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges import batch as batch_module
from kvfidelity.judges.corruptions import corrupt_replies
from kvfidelity.judges.dispatch import build_client
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.llm import LLMJudge
from kvfidelity.judges.reliability import judge_corruptions
from kvfidelity.judges.rubric import Rubric
from kvfidelity.judges.store import AnswerStore
from tests.judges.batch_server import BatchServer, Line, done, wrong
from tests.judges.test_corruptions import POOL, SETTING
from tests.waiting import LIMIT_S

RUBRIC = Path(__file__).parents[2] / "resources/rubrics/blind.md"
PACE = {"poll_s": 0.05, "price": {"input": 1000.0, "output": 1000.0, "batch": 0.5}}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-canary-000")


def row(turn: int) -> dict[str, Any]:
    about = {"turn": turn, "prompt": f"Question {turn}.", "finish_reason": "eos"}
    return about | {"reply": "Yes.", "reference": None, "fed_reply": "Yes."}


def entry(url: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "openai",
        "model": "local",
        "base_url": url,
        "api_key_env": "TEST_KEY",
    } | changes


def judge(url: str, store: Path, pace: dict[str, Any] | None = None, **changes: Any) -> LLMJudge:
    about = entry(url, **changes)
    client = build_client("mine", about, PACE | (pace or {}), store, batch=True)
    return LLMJudge("mine", with_defaults(about), Rubric.read(RUBRIC), client)


def sent(server: BatchServer) -> list[str]:
    return [request["custom_id"] for b in server.batches for request in server.requests(b)]


def test_a_batch_is_sent_once_and_costs_half(tmp_path: Path) -> None:
    rows = [row(turn) for turn in range(5)]
    with BatchServer() as server:
        verdicts = judge(server.url, tmp_path).judge([*rows, row(0)])
        again = judge(server.url, tmp_path).judge(rows)
    assert [verdict.score for verdict in verdicts] == [7] * 6
    assert again == verdicts[:5]
    assert len(server.batches) == 1 and len(sent(server)) == 5
    assert verdicts[0].cost_usd == pytest.approx(0.06)
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(0.3)
    [request] = [r for b in server.batches for r in server.requests(b)][:1]
    assert request["url"] == "/v1/chat/completions"
    assert request["body"]["response_format"]["json_schema"]["strict"] is True


def test_partial_failures_are_missing_with_their_reason_and_asked_again_on_request(
    tmp_path: Path,
) -> None:
    def behave(text: str) -> Line:
        if "Question 1." in text:
            return wrong("the text has no words")
        if "Question 2." in text:
            return None
        return done(5)

    rows = [row(turn) for turn in range(4)]
    with BatchServer(behave, end="expired") as server:
        verdicts = judge(server.url, tmp_path).judge(rows)
        assert [verdict.status for verdict in verdicts] == ["ok", "failed", "failed", "ok"]
        assert verdicts[1].reason == "status 400: the text has no words"
        assert verdicts[2].reason == "not answered: the batch is expired"
        assert judge(server.url, tmp_path).judge(rows) == verdicts
        assert len(sent(server)) == 4
        server.behave = lambda _: done(6)
        again = judge(server.url, tmp_path, attempts=2).judge(rows)
    assert [verdict.score for verdict in again] == [5, 6, 6, 5]
    assert len(sent(server)) == 6


def test_judging_a_run_takes_the_answers_of_the_batch_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(turn) for turn in range(3)]
    with BatchServer() as server:
        judge(server.url, tmp_path).judge(rows)
    monkeypatch.delenv("TEST_KEY")
    about = entry(server.url)
    stored = build_client("mine", about, {}, tmp_path, from_batch=True)
    found = LLMJudge("mine", with_defaults(about), Rubric.read(RUBRIC), stored)
    assert [verdict.score for verdict in found.judge(rows)] == [7] * 3
    with pytest.raises(UserError, match="1 answers that its batch gave are not in the verdict"):
        found.judge([*rows, row(3)])


def test_a_judges_test_is_one_batch(tmp_path: Path) -> None:
    texts = corrupt_replies(POOL, **SETTING)
    with BatchServer() as server:
        about = entry(server.url, batch=True, repeats=2)
        found = judge_corruptions("mine", about, RUBRIC, PACE, tmp_path, texts)
    assert len(server.batches) == 1
    assert set(found["status"]) == {"ok"} and set(found["repeat"]) == {0, 1}


def test_azure_has_its_own_paths(tmp_path: Path) -> None:
    with BatchServer() as server:
        address = server.url.removesuffix("/v1")
        azure = judge(address, tmp_path, api="azure", api_version="2024-10-21")
        assert azure.judge([row(0)])[0].score == 7
        [batch] = server.batches
        [request] = server.requests(batch)
    assert (batch["endpoint"], request["url"]) == ("/chat/completions",) * 2


def test_large_batches_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "MAX_REQUESTS", 2)
    with BatchServer() as server:
        judge(server.url, tmp_path).judge([row(turn) for turn in range(5)])
    assert [len(server.requests(batch)) for batch in server.batches] == [2, 2, 1]


def test_a_refused_batch_and_an_endpoint_without_batches_are_one_line(tmp_path: Path) -> None:
    with BatchServer(end="failed") as server:
        for _ in range(2):
            with pytest.raises(UserError, match="refused a batch: model not for batches"):
                judge(server.url, tmp_path).judge([row(0)])
    assert len(server.batches) == 2
    with (
        BatchServer() as other,
        pytest.raises(UserError, match=r"has no Batch API.*set `batch: false`"),
    ):
        judge(f"{other.url}/elsewhere", tmp_path / "other").judge([row(0)])


def test_what_every_request_of_a_batch_got_stops_with_the_remedy_and_is_asked_again(
    tmp_path: Path,
) -> None:
    message = "Unsupported parameter: 'temperature' is not supported with this model."
    with BatchServer(lambda _: wrong(message)) as server:
        with pytest.raises(UserError, match=r"every request of a batch got.*`temperature: null`"):
            judge(server.url, tmp_path).judge([row(0), row(1)])
        server.behave = lambda _: done(5)
        found = judge(server.url, tmp_path).judge([row(0), row(1)])
    assert [verdict.score for verdict in found] == [5, 5]
    assert len(server.batches) == 2
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(0.12)


def test_a_filtered_prompt_in_a_batch_is_refused(tmp_path: Path) -> None:
    filtered = wrong("The prompt triggered Azure's content management policy")
    with BatchServer(lambda text: filtered if "Question 1." in text else done()) as server:
        found = judge(server.url, tmp_path).judge([row(0), row(1)])
    assert [verdict.status for verdict in found] == ["ok", "refused"]


def test_a_cap_stops_before_a_batch_that_could_cost_more(tmp_path: Path) -> None:
    with BatchServer() as server:
        with pytest.raises(UserError, match=r"beyond `max_usd: 0.2`"):
            judge(server.url, tmp_path, {"max_usd": 0.2}).judge([row(0)])
        assert server.batches == []
        judge(server.url, tmp_path, {"max_usd": 5}).judge([row(0)])
    assert len(server.batches) == 1


JOB = """
import json, sys
from pathlib import Path
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.llm import LLMJudge
from kvfidelity.judges.rubric import Rubric
from kvfidelity.judges.dispatch import build_client
entry, rubric, pace, store = sys.argv[1:]
rows = [{"turn": n, "prompt": f"Question {n}.", "reply": "Yes.", "reference": None,
         "fed_reply": "Yes.", "finish_reason": "eos"} for n in range(6)]
entry = json.loads(entry)
client = build_client("mine", entry, json.loads(pace), Path(store), batch=True)
verdicts = LLMJudge("mine", with_defaults(entry), Rubric.read(Path(rubric)), client).judge(rows)
print(json.dumps([verdict.score for verdict in verdicts]))
"""


def job(server: BatchServer, store: Path) -> subprocess.Popen[str]:
    message = [json.dumps(entry(server.url)), RUBRIC, json.dumps(PACE), store]
    command = [sys.executable, "-c", JOB, *map(str, message)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("path", "batches"),
    [
        ("/files", 1),  # the file is there, no batch: sent once by the next run
        ("/batches", 1),  # the batch is there, its id was never heard
        ("/batches/batch0", 1),  # while waiting
    ],
)
def test_a_crash_at_any_step_sends_nothing_twice(tmp_path: Path, path: str, batches: int) -> None:
    running: list[subprocess.Popen[str]] = []
    started, killed = threading.Event(), threading.Event()

    def kill(called: str) -> None:
        if called == path and not killed.is_set():
            killed.set()
            started.wait(LIMIT_S)
            os.kill(running[0].pid, signal.SIGKILL)
            running[0].wait()

    with BatchServer(before_reply=kill) as server:
        running.append(job(server, tmp_path))
        started.set()
        assert running[0].wait(LIMIT_S) == -signal.SIGKILL
        second = job(server, tmp_path)
        message, _ = second.communicate(timeout=LIMIT_S)
    assert json.loads(message) == [7] * 6
    assert len(server.batches) == batches
    assert len(sent(server)) == len(set(sent(server))) == 6
    store = AnswerStore(tmp_path)
    assert store.open_batches("mine", f"openai {server.url}") == []
    assert store.spent("mine") == pytest.approx(0.36)
