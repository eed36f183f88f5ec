"""Whatever befalls a run: running again ends it, with the artifacts of an undisturbed one.

A few rounds are part of every test run; `make chaos` has 50. A round is a seed: what happens and
when follows from it.
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

from ..judge.server import Server, good
from ..waiting import wait_until
from .project import Project
from .troubles import AFTERWARDS, TROUBLES, Scene

SEEDS = range(int(os.environ.get("KVFIDELITY_CHAOS_ROUNDS", "3")))
TARGETS = ["--until", "judge"]


@dataclass
class Stage:
    """What the rounds share: a project that is ready to generate, and its undisturbed run."""

    before: Project
    whole: Project
    expected: dict[str, str]
    seconds: float
    server: Server
    asked: int


@pytest.fixture(scope="module")
def stage(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Server(lambda *_: good()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_KEY", "sk-canary")
        before = fresh.copy(tmp_path_factory.mktemp("before") / "project")
        about = {"kind": "openai", "model": "local", "rubric": "blind", "base_url": server.url}
        judge = about | {"key_env": "TEST_KEY", "concurrency": 1}
        grid = {"positions": ["stale"]}
        before.configure({"judges": {"local": judge}, "judging": ["local"], "grid": grid})
        assert before.snakemake("results/dialogues/tiny/own/pool.parquet").returncode == 0
        whole = before.copy(tmp_path_factory.mktemp("whole") / "project")
        began = time.perf_counter()
        done = whole.snakemake(*TARGETS)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds = time.perf_counter() - began
        yield Stage(before, whole, whole.digests(), seconds, server, len(server.requests))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rerun_recovers(stage: Stage, tmp_path: Path, seed: int) -> None:
    trouble = TROUBLES[seed % len(TROUBLES)]
    if trouble.__name__ in ("full_disk", "read_only_results") and os.geteuid():
        pytest.skip("mounting a small disk needs root")
    after = trouble in AFTERWARDS
    project = (stage.whole if after else stage.before).copy(tmp_path / "project")
    stage.server.requests.clear()
    scene = Scene(project, random.Random(seed), stage.seconds, TARGETS)
    trouble(scene)
    scene.succeeded()
    assert project.digests() == stage.expected
    # A judge that is killed while the answer is on its way cannot know that it was charged.
    paid_twice = len(stage.server.requests) - (0 if after else stage.asked)
    assert 0 <= paid_twice <= (trouble.__name__.startswith("killed")), Counter(
        str(request["messages"]) for request in stage.server.requests
    )
    wait_until(lambda: not scene.processes(), lambda: [p.cmdline() for p in scene.processes()])
