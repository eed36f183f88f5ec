"""Finished runs of a killed cluster job are restored unchanged, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvfidelity.records.grid import GENERATED
from kvfidelity.worker.job import GenerateJob, WorkerConfig
from kvfidelity.worker.salvage import SalvagedRuns
from tests.waiting import wait_until
from tests.worker.conftest import Workdir, write_pool
from tests.worker.test_worker import artifact_digests

CONFIG = WorkerConfig(
    "model",
    "revision",
    "float32",
    "cpu",
    "code",
    "1GiB",
    "0GB",
    "overflow",
    threads=1,
    batch_size=1,
)


@pytest.fixture
def make_job(tmp_path: Path) -> GenerateJob:
    (tmp_path / "pool").write_bytes(b"dialogues")
    outputs = {name: str(tmp_path / f"run/{name}.parquet") for name in GENERATED}
    (tmp_path / "run").mkdir()
    for name in GENERATED:
        Path(outputs[name]).write_text(name)
    return GenerateJob("{}", str(tmp_path / "pool"), "000", **outputs)


def delete(job: GenerateJob) -> None:
    for name in GENERATED:
        Path(getattr(job, name)).unlink()


def test_a_stored_run_is_restored_as_it_was(tmp_path: Path, make_job: GenerateJob) -> None:
    finished = SalvagedRuns(tmp_path / "finished")
    assert not finished.restore(CONFIG, make_job)
    finished.store(CONFIG, make_job)
    finished.store(CONFIG, make_job)
    delete(make_job)
    # What the killed job was writing when it died.
    (tmp_path / "run/.turns.parquet.tmp-4194305").write_text("half")
    assert finished.restore(CONFIG, make_job)
    assert Path(make_job.evictions).read_text() == "evictions"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "evictions.parquet",
        "turns.parquet",
    ]
    finished.clear()
    assert not finished.restore(CONFIG, make_job)


@pytest.mark.parametrize(
    "change",
    [
        lambda config, job: (replace(config, code_digest="other"), job),
        lambda config, job: (replace(config, model_revision="other"), job),
        lambda config, job: (config, replace(job, spec='{"seed": 1}')),
        lambda config, job: (config, replace(job, dialogue="001")),
        lambda config, job: Path(job.pool).write_bytes(b"others") and (config, job),
    ],
)
def test_another_run_is_not_restored(
    tmp_path: Path,
    make_job: GenerateJob,
    change: Callable[[WorkerConfig, GenerateJob], tuple[WorkerConfig, GenerateJob]],
) -> None:
    finished = SalvagedRuns(tmp_path / "finished")
    finished.store(CONFIG, make_job)
    assert not finished.restore(*change(CONFIG, make_job))


def test_a_corrupt_or_incomplete_run_is_not_restored(tmp_path: Path, make_job: GenerateJob) -> None:
    finished = SalvagedRuns(tmp_path / "finished")
    finished.store(CONFIG, make_job)
    # A second name of the same file: damage to one is damage to both.
    Path(make_job.turns).write_text("tur")
    delete(make_job)
    assert not finished.restore(CONFIG, make_job)
    assert not Path(make_job.turns).exists()


def test_a_repeated_job_restores_finished_runs(workdir: Workdir) -> None:
    assert workdir.run("job")[0] == 0
    assert not (workdir.folder / ".snakemake").exists()
    before = artifact_digests(workdir, "job")
    workdir.environment["SLURM_JOB_ID"] = "1"
    assert workdir.run("job")[0] == 0
    (workdir.folder / "job/turns.parquet").unlink()
    workdir.environment["SLURM_JOB_ID"] = "2"
    code, stderr = workdir.run("job")
    assert (code, stderr) == (0, "restored job from an earlier job that was killed\n")
    assert artifact_digests(workdir, "job") == before
    write_pool(workdir.folder / "pool.parquet", turns=4)
    assert "turn 4 of 4" in workdir.run("job")[1]
    # A job of its own has a worker of its own, and one without has its own, too.
    assert len(workdir.workers()) == 3
    for job in ("1", "2"):
        workdir.environment["SLURM_JOB_ID"] = job
        workdir.stop()
    del workdir.environment["SLURM_JOB_ID"]
    workdir.stop()
    wait_until(lambda: not workdir.workers())
