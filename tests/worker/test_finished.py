"""What a scheduler's job finished before it was killed is taken up, whole and unchanged, or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kvfidelity.worker.finished import Finished
from kvfidelity.worker.job import Hello, Request

from tests.waiting import wait_until
from tests.worker.conftest import Site, write_pool
from tests.worker.test_worker import artifact_digests

HELLO = Hello("model", "revision", "float32", "cpu", "code", "1GiB", "0GB", 1, 1)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    (tmp_path / "pool").write_bytes(b"dialogues")
    names = ("turns", "evictions", "recall")
    outputs = {name: str(tmp_path / f"run/{name}.parquet") for name in names}
    (tmp_path / "run").mkdir()
    for name in names:
        Path(outputs[name]).write_text(name)
    return Request("{}", str(tmp_path / "pool"), "000", **outputs)


def delete(request: Request) -> None:
    for name in ("turns", "evictions", "recall"):
        Path(getattr(request, name)).unlink()


def test_a_finished_run_is_taken_as_it_was(tmp_path: Path, request_: Request) -> None:
    finished = Finished(tmp_path / "finished")
    assert not finished.take(HELLO, request_)
    finished.keep(HELLO, request_)
    finished.keep(HELLO, request_)
    delete(request_)
    assert finished.take(HELLO, request_)
    assert Path(request_.recall).read_text() == "recall"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "evictions.parquet",
        "recall.parquet",
        "turns.parquet",
    ]
    finished.forget()
    assert not finished.take(HELLO, request_)


@pytest.mark.parametrize(
    "change",
    [
        lambda hello, request: (replace(hello, fingerprint="other"), request),
        lambda hello, request: (replace(hello, model_revision="other"), request),
        lambda hello, request: (hello, replace(request, spec='{"seed": 1}')),
        lambda hello, request: (hello, replace(request, dialogue="001")),
        lambda hello, request: Path(request.pool).write_bytes(b"others") and (hello, request),
    ],
)
def test_another_run_is_not_taken(
    tmp_path: Path,
    request_: Request,
    change: Callable[[Hello, Request], tuple[Hello, Request]],
) -> None:
    finished = Finished(tmp_path / "finished")
    finished.keep(HELLO, request_)
    assert not finished.take(*change(HELLO, request_))


def test_a_damaged_or_half_kept_run_is_not_taken(tmp_path: Path, request_: Request) -> None:
    finished = Finished(tmp_path / "finished")
    finished.keep(HELLO, request_)
    # A second name of the same file: damage to one is damage to both.
    Path(request_.turns).write_text("tur")
    delete(request_)
    assert not finished.take(HELLO, request_)
    assert not Path(request_.turns).exists()


def test_a_job_that_is_repeated_takes_what_was_finished(site: Site) -> None:
    assert site.run("job")[0] == 0
    assert not (site.folder / ".snakemake").exists()
    before = artifact_digests(site, "job")
    site.environment["SLURM_JOB_ID"] = "1"
    assert site.run("job")[0] == 0
    (site.folder / "job/turns.parquet").unlink()
    site.environment["SLURM_JOB_ID"] = "2"
    code, said = site.run("job")
    assert (code, said) == (0, "took job from an earlier job that was cut short\n")
    assert artifact_digests(site, "job") == before
    write_pool(site.folder / "pool.parquet", turns=4)
    assert "turn 4 of 4" in site.run("job")[1]
    # A job of its own has a worker of its own, and one without has its own, too.
    assert len(site.workers()) == 3
    for job in ("1", "2"):
        site.environment["SLURM_JOB_ID"] = job
        site.stop()
    del site.environment["SLURM_JOB_ID"]
    site.stop()
    wait_until(lambda: not site.workers())
