"""After any fault, running again completes the run with the artifacts of an undisturbed one.

A few rounds are part of every test run; `make chaos` has 50. The seed of a round decides which
fault occurs and when.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.judges.server import Server, good
from tests.waiting import wait_until
from tests.workflow.faults import AFTERWARDS, FAULTS, Scenario
from tests.workflow.project import Project

SEEDS = range(int(os.environ.get("KVFIDELITY_CHAOS_ROUNDS", "2")))
TARGETS = ["--until", "judge"]


@dataclass
class ChaosSetup:
    """What the rounds share: a project that is ready to generate, and its undisturbed run."""

    before: Project
    whole: Project
    expected: dict[str, str]
    seconds: float
    server: Server
    asked: int


@pytest.fixture(scope="module")
def setup(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosSetup]:
    with Server(lambda *_: good()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KEY", "sk-canary")
        before = prepared.copy(tmp_path_factory.mktemp("before") / "project")
        about = {"kind": "openai", "model": "local", "rubric": "blind", "base_url": server.url}
        judge = about | {"api_key_env": "TEST_KEY", "concurrency": 1}
        grid = {"positions": ["stale"]}
        before.configure({"judges": {"local": judge}, "judging": ["local"], "grid": grid})
        whole = before.copy(tmp_path_factory.mktemp("whole") / "project")
        started = time.perf_counter()
        done = whole.snakemake(*TARGETS)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds = time.perf_counter() - started
        yield ChaosSetup(before, whole, whole.digests(), seconds, server, len(server.requests))


@pytest.mark.long(30)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rerun_recovers(setup: ChaosSetup, tmp_path: Path, seed: int) -> None:
    fault = FAULTS[seed % len(FAULTS)]
    if fault.__name__ in ("full_disk", "read_only_results") and os.geteuid():
        pytest.skip("mounting a small disk needs root")
    after = fault in AFTERWARDS
    project = (setup.whole if after else setup.before).copy(tmp_path / "project")
    setup.server.requests.clear()
    scenario = Scenario(project, random.Random(seed), setup.seconds, TARGETS)
    fault(scenario)
    scenario.succeeded()
    assert project.digests() == setup.expected
    # A judge that is killed while the answer is on its way cannot know that it was charged.
    paid_twice = len(setup.server.requests) - (0 if after else setup.asked)
    assert 0 <= paid_twice <= (fault.__name__.startswith("killed")), Counter(
        str(request["messages"]) for request in setup.server.requests
    )
    wait_until(
        lambda: not scenario.processes(), lambda: [p.cmdline() for p in scenario.processes()]
    )
