"""Judging as the workflow does it, over real HTTP: kills, faults, caps, keys, batches.

The test of 1,000 verdicts and 10 kills takes minutes: it runs with KVFIDELITY_CHAOS=full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from kvfidelity.judges.store import AnswerStore
from tests.judges.batch_server import BatchServer
from tests.judges.server import Reply, Server, completion, good
from tests.workflow.project import Project
from tests.workflow.replies import with_replies

KEY = "sk-canary-3f9c2e"
PRICES = {"local": {"input": 10.0, "output": 20.0}}
#: Of an answer: 100 and 20 tokens.
USD = (100 * 10 + 20 * 20) / 1e6
CONCURRENCY = 16
FULL = os.environ.get("KVFIDELITY_CHAOS") == "full"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def entry(url: str, **changes: Any) -> dict[str, Any]:
    about = {"kind": "openai", "model": "local", "rubric": "blind", "base_url": url}
    return about | {"api_key_env": "TEST_KEY", "concurrency": CONCURRENCY} | changes


class Misbehaving:
    """What the server does to a request: its text decides what it gets in the end, chance what
    goes wrong before, at most three times.

    An answer is lost at most twice: after a third time a verdict is missing, for each may be
    charged. charged: answers that an endpoint would charge, those that were lost included.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._faults: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.charged = 0

    def __call__(self, number: int, request: dict[str, Any]) -> Reply:
        text = request["messages"][1]["content"]
        with self._lock:
            fault = self._chance.choice(FAULTS) if self._chance.random() < 0.3 else None
            if self._faults[text] == 3 or (fault in LOST and self._lost[text] == 2):
                fault = None
            self._faults[text] += fault is not None
            self._lost[text] += fault in LOST
            self.charged += fault in LOST or fault is None
        if fault == "slow":  # longer than any timeout
            time.sleep(SLOW_S)
            return expected(text)[0]
        if fault is not None:
            return FAULT[fault]
        answer = expected(text)[0]
        with self._lock:
            self.paid[text] += 1
        return answer


FAULT: dict[str, Reply] = {
    "429 with retry-after": (429, {"retry-after": "0.3"}, b"{}"),
    "429 without": (429, {}, b"{}"),
    "500": (500, {}, b'{"error": {"message": "oops"}}'),
    "dropped": (200, {}, None),
}
FAULTS = [*FAULT, "slow"]
LOST = ("dropped", "slow")
TIMEOUT_S, SLOW_S = 4.0, 5.0


def expected(text: str) -> tuple[Reply, str, int | None]:
    """The answer to a request's text, its status and score."""
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    match number % 20:
        case 0:
            return completion("no JSON"), "unparsable", None
        case 1:
            return completion('{"reason": "x", "score": 11}'), "unparsable", None
        case 2:
            return completion(None, refusal="I will not"), "refused", None
        case 3:
            return completion('{"reason": "x', finish="length"), "truncated", None
    score = 1 + number // 20 % 10
    return good(score), "ok", score


def verdicts(project: Project) -> pl.DataFrame:
    files = sorted((project.folder / "results/judge").rglob("verdicts.parquet"))
    return pl.concat(map(pl.read_parquet, files))


def text_of(run: str, turn: int) -> str:
    """The part of a request's text that tells it from others."""
    return f"Answer {turn} of {run}."


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("dialogues", "turns", "kills"),
    [
        pytest.param(1, 20, 3, id="100 verdicts, 3 kills"),
        pytest.param(
            10,
            20,
            10,
            id="1000 verdicts, 10 kills",
            marks=pytest.mark.skipif(not FULL, reason="takes minutes: set KVFIDELITY_CHAOS=full"),
        ),
    ],
)
def test_kills_lose_nothing_and_pay_only_what_was_in_flight_twice(
    fresh: Project, tmp_path: Path, dialogues: int, turns: int, kills: int
) -> None:
    project = fresh.copy(tmp_path / "project")
    server_does = Misbehaving(seed=5)
    moments = random.Random(7)
    total, killed = 5 * dialogues * turns, 0
    with Server(server_does) as server:
        remote = {"remote": entry(server.url, timeout_s=TIMEOUT_S)}
        with_replies(project, dialogues, turns, remote, prices=PRICES)
        for _ in range(kills):
            # Once judging has started, so that no kill falls on Snakemake's own start.
            workflow, paid = project.start("--nolock", "--until", "judge"), len(server.requests)
            while len(server.requests) == paid and workflow.poll() is None:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 4))
            killed += workflow.poll() is None
            with contextlib.suppress(ProcessLookupError):  # it may have done all there is
                os.killpg(workflow.pid, signal.SIGKILL)
            workflow.wait()
        assert killed, "no kill fell on a workflow that had something to do"
        project.snakemake("--unlock")
        done = project.snakemake("--until", "judge", timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(project)
    assert found.height == total and found.select("run", "turn").n_unique() == total
    sent = {text.split("\nAnswer ")[1].split(".\n")[0]: text for text in server_does.paid}
    assert len(sent) == total
    for row in found.iter_rows(named=True):
        path = text_of(row["run"], row["turn"]).removeprefix("Answer ").removesuffix(".")
        _, status, score = expected(sent[path])
        assert (row["status"], row["score"]) == (status, score), row
        assert row["reason"]
    twice = sum(server_does.paid.values()) - total
    print(f"{total} verdicts, {len(server.requests)} requests, {kills} kills, {twice} paid twice")
    assert twice <= kills * CONCURRENCY
    store = project.folder / "resources/verdicts"
    assert AnswerStore(store).spent("remote") >= server_does.charged * USD
    assert set(found["status"]) >= {"ok", "unparsable"}


class Telltale:
    """An endpoint that tells the key it was given; looks at every command line meanwhile."""

    def __init__(self) -> None:
        self.seen_in_commands = False

    def __call__(self, number: int, request: dict[str, Any]) -> Reply:
        if number % 10 == 0:
            for process in psutil.process_iter(["cmdline"]):
                self.seen_in_commands |= KEY in " ".join(process.info["cmdline"] or [])
        if number % 7 == 3:
            output = {"error": {"message": f"unwanted request with key {KEY}"}}
            return 400, {}, json.dumps(output).encode()
        properties = request["response_format"]["json_schema"]["schema"]["properties"]
        text = request["messages"][1]["content"]
        score = 2 if "Note to the judge" in text else 3 + number % 6
        output = {name: "first" if name == "better" else score for name in properties}
        return completion(json.dumps(output | {"reason": f"{KEY} is your key"}))


@pytest.mark.long(45)
def test_a_key_is_in_no_file_log_or_command_line_and_costs_are_recorded(project: Project) -> None:
    """A whole run with two paid judges, from generation to the page."""
    endpoint = Telltale()
    with Server(endpoint) as server:
        rubrics = ("grounded", "pairwise")
        judges = {rubric: entry(server.url, rubric=rubric) for rubric in rubrics}
        project.configure(
            {
                "judges": judges,
                "judging": ["formula", *judges],
                "prices": PRICES,
                "reliability": {"replies": 3, "max_context_words": 400},
                "grid": {"policies": ["baseline", "random"], "positions": ["stale"]},
            }
        )
        done = project.snakemake("--printshellcmds", "--verbose")
        assert done.returncode == 0, done.stdout + done.stderr
        asked = len(server.requests)
        assert project.planned() == set()
        # Answers are kept next to the results: judging again costs only what failed.
        failed = sum(number % 7 == 3 for number in range(asked))
        for made in ("judge", "reliability", "comparisons"):
            shutil.rmtree(project.folder / "results" / made)
        rules = ("test_judge", "judge", "compare_replies", "test_pairwise_judge")
        again = project.snakemake("--until", *rules)
        assert again.returncode == 0, again.stdout + again.stderr
    # A request that failed may have been answered for another run meanwhile.
    assert 0 < len(server.requests) - asked <= failed
    assert KEY not in done.stdout + done.stderr + again.stdout + again.stderr
    assert not endpoint.seen_in_commands
    files = [file for file in project.folder.rglob("*") if file.is_file()]
    assert any(".snakemake" in file.parts for file in files)
    holders = [file for file in files if KEY.encode() in contents(file)]
    assert holders == []
    tables = project.folder / "results/tables"
    costs = pl.read_parquet(tables / "costs.parquet")
    paid = costs.filter(pl.col("judge_kind") == "openai")
    assert paid.height == 4 and paid["unpriced"].sum() == 0
    # An answer can serve the run and its test, which are counted apart.
    assert paid["answers"].sum() == pytest.approx(asked - failed, rel=0.1)
    assert paid["usd"].sum() == pytest.approx(paid["answers"].sum() * USD)
    table = pl.read_parquet(tables / "reliability.parquet")
    measures = {"auc", "repeats", "agreement", "injection", "pairs", "order"}
    assert set(table["measure"]) == measures
    page = (project.folder / "results/report.html").read_text()
    assert "How far the judges can be trusted" in page
    assert "Words to the judge inside a reply" in page
    assert "Position bias of <strong>pairwise</strong>" in page


def contents(file: Path) -> bytes:
    """A file's content; tables as text, because Parquet compresses."""
    if file.suffix == ".parquet":
        return pl.read_parquet(file).write_ndjson().encode()
    return file.read_bytes()


def test_a_cap_stops_the_workflow_in_one_line_and_a_higher_one_goes_on(
    fresh: Project, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "project")
    with Server(lambda *_: good(6)) as server:
        about = entry(server.url, concurrency=2)
        capped = {"remote": about | {"max_usd": 0.05}}
        with_replies(project, 1, 6, capped, prices=PRICES)
        stopped = project.snakemake("--until", "judge")
        output = stopped.stdout + stopped.stderr
        assert stopped.returncode != 0
        assert "error: judge remote: " in output and "max_usd: 0.05" in output
        assert "Traceback" not in output
        spent = len(server.requests) * USD
        assert 0 < spent <= 0.05
        judges = {"judges": {"remote": about | {"max_usd": 1.0}}}
        project.reconfigure(judges)
        done = project.snakemake("--until", "judge")
        assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(project)["score"].to_list() == [6] * 30
    assert len(server.requests) == 30


def test_one_batch_asks_for_a_whole_run(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    with BatchServer() as server:
        with_replies(project, 1, 3, {"remote": entry(server.url, batch=True, poll_s=0.1)})
        done = project.snakemake("--until", "judge")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [len(server.requests(batch)) for batch in server.batches] == [15]
        assert verdicts(project)["score"].to_list() == [7] * 15
        assert project.planned("--until", "judge") == set()
        # The record of the batch is written again without judging again and without a request.
        (project.folder / "results/judge_batches/remote.json").unlink()
        assert project.planned("results/judge_batches/remote.json") == {
            ("request_judge_batch", "remote")
        }
        project.reconfigure({"judges": {"remote": {"attempts": 2}}})
        assert {rule for rule, _ in project.planned("--until", "judge")} == {
            "request_judge_batch",
            "judge",
        }
        done = project.snakemake("--until", "judge")
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.batches) == 1
