"""As many jobs at once as a machine has GPUs, each with a worker of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from kvfidelity.errors import UserError
from kvfidelity.worker.gpus import share_of_a_gpu, visible_gpus

from tests.waiting import wait_until
from tests.worker.conftest import Site
from tests.worker.test_worker import artifact_digests


def ends(site: Site, jobs: int, *arguments: str) -> list[str]:
    """Run so many jobs at once; what they said."""
    started = [site.start(f"job-{number}", *arguments) for number in range(jobs)]
    ended = [site.end(job) for job in started]
    assert [code for code, _ in ended] == [0] * jobs, ended
    return [said for _, said in ended]


def test_each_gpu_has_a_worker_and_a_job_at_a_time(site: Site) -> None:
    """No GPU is needed: a worker that is told of one that is not there computes on the CPU."""
    site.environment["CUDA_VISIBLE_DEVICES"] = "3,GPU-5"
    said = ends(site, 4, "--gpus", "2")
    assert sum(text.count("loading") for text in said) == 2
    seen = [worker.environ()["CUDA_VISIBLE_DEVICES"] for worker in site.workers()]
    assert sorted(seen) == ["3", "GPU-5"]
    assert len({tuple(artifact_digests(site, f"job-{number}")) for number in range(4)}) == 1
    # The next ones find both warm.
    assert sum(text.count("loading") for text in ends(site, 2, "--gpus", "2")) == 0
    site.stop()
    wait_until(lambda: not site.workers())


def test_on_a_cpu_two_at_once_are_two_workers(site: Site) -> None:
    ends(site, 2, "--gpus", "2", "--device", "cpu")
    assert len(site.workers()) == 2


def test_a_killed_job_leaves_its_gpu_to_the_next(site: Site) -> None:
    site.environment["CUDA_VISIBLE_DEVICES"] = "0,1"
    jobs = [site.start(f"job-{n}", "--gpus", "2", **site.deed("sleep", 2)) for n in range(2)]
    wait_until(lambda: len(site.marks()) == 2)
    for job in jobs:
        job.kill()
        job.wait()
    ends(site, 2, "--gpus", "2")


@pytest.mark.parametrize(
    ("gpus", "visible", "device", "message"),
    [
        (3, "0,1", "auto", r"--resources gpu=3\), but 2 are visible here \(0, 1\): use gpu=2"),
        (2, "0,1", "cuda:1", "write `device: cuda` in the config, or use gpu=1"),
    ],
)
def test_more_jobs_than_gpus_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str, device: str, message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=message), share_of_a_gpu(gpus, 1, device):
        pass


def test_gpus_fill_evenly_and_a_share_that_ends_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two GPUs of two lanes; locks of one process conflict as those of several do."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("kvfidelity.worker.place.LONGEST", 1000)
    with contextlib.ExitStack() as held:
        shares = [held.enter_context(share_of_a_gpu(2, 2, "cuda")) for _ in range(3)]
        with share_of_a_gpu(2, 2, "cuda") as last:
            shares.append(last)
        with share_of_a_gpu(2, 2, "cuda") as again:
            shares.append(again)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "7", "4", "7", "7"]


def test_one_job_at_once_has_all_that_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 2")
    assert visible_gpus() == ["1", "2"]
    with share_of_a_gpu(1, 1, "cuda:1") as environment:
        assert environment == {}
