"""Workers and clients killed at random moments: every job ends as if nothing had happened.

KVFIDELITY_CHAOS_ROUNDS asks for more rounds than the few that every test run has.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvfidelity.records.artifacts import digest, read_parquet
from kvfidelity.records.grid import GENERATED
from tests.waiting import wait_until
from tests.worker.conftest import Workdir, write_pool
from tests.worker.test_batch_server import same_runs

ROUNDS = int(os.environ.get("KVFIDELITY_CHAOS_ROUNDS", "2"))
OWN = {"replies": "own", "max_new_tokens": 24, "temperature": 0.7}


def digests(workdir: Workdir, name: str) -> list[str]:
    index = workdir.folder / name
    return [digest(read_parquet(index / f"{kind}.parquet", kind=kind)) for kind in GENERATED]


def a_victim(
    workdir: Workdir, dice: random.Random, clients: list[psutil.Process]
) -> psutil.Process:
    return dice.choice([*clients, *workdir.workers()])


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_jobs_run_again_after_a_kill_end_as_undisturbed_ones(warm: Workdir, seed: int) -> None:
    """Every other round has a batch_size of 2: then records are equal up to rounding."""
    dice, batch = random.Random(seed), ("--batch-size", str(1 + seed % 2))
    write_pool(warm.folder / "pool.parquet", turns=12)
    for name in ("one", "two"):
        assert warm.run(f"undisturbed-{name}", seed=len(name) + ord(name[0]), **OWN)[0] == 0
    start = time.perf_counter()
    warm.run("timing", **OWN)
    usual = time.perf_counter() - start

    open_jobs = ["one", "two"]
    for attempt in range(4):
        jobs = {n: warm.start(n, *batch, seed=len(n) + ord(n[0]), **OWN) for n in open_jobs}
        if attempt < 3:
            time.sleep(dice.uniform(0, 2 * usual))
            alive = [psutil.Process(job.pid) for job in jobs.values() if job.poll() is None]
            if alive or warm.workers():
                a_victim(warm, dice, alive).send_signal(signal.SIGKILL)
        ended = {name: warm.end(job) for name, job in jobs.items()}
        ends = {name: code for name, (code, _) in ended.items()}
        # A killed client fails; a killed worker fails no job.
        assert set(ends.values()) <= {0, -signal.SIGKILL}, ended
        for name, code in ends.items():
            files = sorted(file.name for file in (warm.folder / name).glob("*.parquet"))
            assert code != 0 or files == sorted(f"{kind}.parquet" for kind in GENERATED)
            for kind in GENERATED:  # whole or absent, also after a kill
                if f"{kind}.parquet" in files:
                    read_parquet(warm.folder / name / f"{kind}.parquet", kind=kind)
        open_jobs = [name for name, code in ends.items() if code] or ["one", "two"]
    for name in ("one", "two"):
        same_runs(warm, name, f"undisturbed-{name}")
        if not seed % 2:
            assert digests(warm, name) == digests(warm, f"undisturbed-{name}")
    warm.stop()
    # One that was about to start when its client was killed waits ten seconds for another.
    wait_until(lambda: not warm.workers())


def connections(workdir: Workdir) -> int:
    """Clients connected to this folder's worker, accepted or not."""
    sockets = Path("/proc/net/unix").read_text(encoding="utf-8")
    return sockets.count(str(workdir.runtime)) - 1  # the listener's own


def test_a_worker_killed_in_the_middle_of_a_batch_costs_no_artifact_and_changes_none(
    workdir: Workdir,
) -> None:
    """All three runs are under way when it dies, and three have ended."""
    batch, folder = ("--batch-size", "3"), workdir.folder
    write_pool(folder / "pool.parquet", turns=8)

    def cell(name: str, **changes: Any) -> dict[str, Any]:
        fault = {"fault": "hold", "marker": str(folder / name), "times": int(name != "three")}
        return {"parameters": fault} | changes | OWN

    # After a prompt is fed: then all runs of the batch have started.
    cells = {"one": cell("one"), "two": cell("two", trigger="prompt"), "three": cell("three")}
    for name in cells:
        (folder / f"{name}.go").touch()
        assert workdir.run(f"undisturbed-{name}", *batch, **cells[name])[0] == 0
        (folder / f"{name}.go").unlink()
        (folder / name).unlink(missing_ok=True)
    finished = {file: file.read_bytes() for file in folder.glob("undisturbed-*/*")}
    assert len(finished) == len(cells) * len(GENERATED)

    # The first run holds the worker until all have connected; the second one holds it when all are
    # under way.
    jobs = {"one": workdir.start("job-one", *batch, **cells["one"])}
    wait_until((folder / "one").exists)
    for name in ("two", "three"):
        jobs[name] = workdir.start(f"job-{name}", *batch, **cells[name])
    wait_until(lambda: connections(workdir) == len(jobs))
    (folder / "one.go").touch()
    wait_until((folder / "two").exists)
    workdir.worker().kill()
    ended = {name: workdir.end(job) for name, job in jobs.items()}
    assert [code for code, _ in ended.values()] == [0, 0, 0], ended
    for name, (_, stderr) in ended.items():
        assert stderr.count("the worker died; starting another") == 1, stderr
        assert digests(workdir, f"job-{name}") == digests(workdir, f"undisturbed-{name}")
    assert finished == {file: file.read_bytes() for file in finished}
