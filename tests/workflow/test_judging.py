"""Judging as the workflow does it, over real HTTP: kills, faults, caps, keys, batches.

The test of 1,000 verdicts and 10 kills takes minutes: it runs with KVFIDELITY_CHAOS=full.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ..judge.server import Reply, Server, completion, good
from .project import Project
from .replies import with_replies

KEY = "sk-canary-3f9c2e"
CONCURRENCY = 16
FULL = os.environ.get("KVFIDELITY_CHAOS") == "full"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)


def entry(url: str, **changes: Any) -> dict[str, Any]:
    about = {"kind": "openai", "model": "local", "rubric": "blind", "base_url": url}
    return about | {"key_env": "TEST_KEY", "concurrency": CONCURRENCY} | changes


class Misbehaving:
    """What the server does to a request: its text decides what it gets in the end, chance what
    goes wrong before, at most three times."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._faults: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()

    def __call__(self, number: int, request: dict[str, Any]) -> Reply:
        text = request["messages"][1]["content"]
        with self._lock:
            fault = self._chance.choice(FAULTS) if self._chance.random() < 0.3 else None
            if self._faults[text] == 3:
                fault = None
            self._faults[text] += fault is not None
        if fault == "slow":  # nobody waits so long
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
    names = [str(file.parent.relative_to(project.folder / "results/judge")) for file in files]
    return pl.concat(
        pl.read_parquet(file).with_columns(run=pl.lit(name))
        for file, name in zip(files, names, strict=True)
    )


def text_of(run: str, turn: int) -> str:
    """The part of a request's text that tells it from others."""
    return f"Answer {turn} of {run.split('/', 1)[1]}."


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
    total = 5 * dialogues * turns
    with Server(server_does) as server:
        with_replies(project, dialogues, turns, {"remote": entry(server.url, timeout_s=TIMEOUT_S)})
        for _ in range(kills):
            # Once judging has begun, so that no kill falls on Snakemake's own start.
            begun, paid = project.start("--nolock", "--until", "judge"), len(server.requests)
            while len(server.requests) == paid and begun.poll() is None:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 4))
            os.killpg(begun.pid, signal.SIGKILL)
            begun.wait()
        project.snakemake("--unlock")
        done = project.snakemake("--until", "judge", timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(project)
    assert found.height == total and found.select("run", "turn").n_unique() == total
    sent = {text.split("\nAnswer ")[1].split(".\n")[0]: text for text in server_does.paid}
    assert len(sent) == total
    for row in found.iter_rows(named=True):
        place = text_of(row["run"], row["turn"]).removeprefix("Answer ").removesuffix(".")
        _, status, score = expected(sent[place])
        assert (row["status"], row["score"]) == (status, score), row
        assert row["reason"]
    twice = sum(server_does.paid.values()) - total
    print(f"{total} verdicts, {len(server.requests)} requests, {kills} kills, {twice} paid twice")
    assert twice <= kills * CONCURRENCY
    assert set(found["status"]) >= {"ok", "unparsable"}
