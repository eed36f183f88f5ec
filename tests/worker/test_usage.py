"""Time and memory of a job are notes in its artifact, outside of the digest."""

from __future__ import annotations

import time

import psutil

from kvfidelity.records.artifacts import digest, read_metadata, read_parquet
from kvfidelity.records.notes import BATCH_SIZE, CPU, PEAK, WALL
from kvfidelity.worker.usage import Usage
from tests.worker.conftest import Workdir


def taken(workdir: Workdir, name: str) -> dict[str, float]:
    notes = read_metadata(workdir.folder / name / "turns.parquet")
    return {key: float(notes[key]) for key in (WALL, CPU, PEAK, BATCH_SIZE)}


def test_an_artifact_has_notes_of_its_time_and_memory(warm: Workdir) -> None:
    worker = psutil.Process(warm.worker().pid)
    times = worker.cpu_times()
    assert warm.run("job", replies="own", max_new_tokens=16)[0] == 0
    spent = sum(worker.cpu_times()[:2]) - sum(times[:2])
    found = taken(warm, "job")
    assert 0 < found[WALL] < 100
    # Loading and waiting for the next client are the process's, but not the job's.
    assert 0 < found[CPU] <= spent + 0.02
    assert found[PEAK] >= 0.9 * worker.memory_info().rss
    assert found[BATCH_SIZE] == 1


def test_time_and_memory_do_not_change_a_runs_digest(warm: Workdir) -> None:
    for name in ("one", "two"):
        assert warm.run(name)[0] == 0
    assert taken(warm, "one") != taken(warm, "two")
    frames = [read_parquet(warm.folder / n / "turns.parquet", kind="turns") for n in ("one", "two")]
    assert digest(frames[0]) == digest(frames[1])


def test_seconds_of_a_process_that_waits_are_not_cpu_seconds() -> None:
    usage = Usage(batch_size=1)
    time.sleep(0.3)
    waited = usage.notes()
    assert float(waited[WALL]) >= 0.3
    while float(usage.notes()[CPU]) < float(waited[CPU]) + 0.2:
        sum(range(10_000))
    assert float(waited[CPU]) < float(waited[WALL])
