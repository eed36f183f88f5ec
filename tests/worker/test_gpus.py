"""One job at a time for each GPU, each with its own worker."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from kvfidelity.errors import UserError
from kvfidelity.worker.claims import RunClaims, claim, owner
from kvfidelity.worker.gpus import gpu_share, visible_gpus
from kvfidelity.worker.socket_path import WORKER_VARIABLE
from tests.forked_python import NOT_FORKED
from tests.waiting import LIMIT_S, wait_until
from tests.worker.conftest import Workdir
from tests.worker.test_worker import artifact_digests


def ends(workdir: Workdir, jobs: int, *arguments: str) -> list[str]:
    """Run jobs at the same time; their standard error."""
    started = [workdir.start(f"job-{number}", *arguments) for number in range(jobs)]
    ended = [workdir.end(job) for job in started]
    assert [code for code, _ in ended] == [0] * jobs, ended
    return [stderr for _, stderr in ended]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPUs 4 and 7 are visible, and locks and claims are the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("kvfidelity.worker.socket_path.MAX_PATH_BYTES", 1000)
    monkeypatch.chdir(tmp_path)


def test_each_gpu_has_a_worker_and_a_job_at_a_time(workdir: Workdir) -> None:
    """No GPU is needed: a worker for a missing GPU computes on the CPU."""
    workdir.environment |= NOT_FORKED | {"CUDA_VISIBLE_DEVICES": "3,GPU-5"}
    stderr = ends(workdir, 4, "--gpus", "2")
    assert sum(text.count("loading") for text in stderr) == 2
    seen = [worker.environ()["CUDA_VISIBLE_DEVICES"] for worker in workdir.workers()]
    assert sorted(seen) == ["3", "GPU-5"]
    assert len({tuple(artifact_digests(workdir, f"job-{number}")) for number in range(4)}) == 1
    # The next ones find both warm.
    assert sum(text.count("loading") for text in ends(workdir, 2, "--gpus", "2")) == 0
    workdir.stop()
    wait_until(lambda: not workdir.workers())


def test_on_a_cpu_two_at_once_are_two_workers(workdir: Workdir) -> None:
    ends(workdir, 2, "--gpus", "2", "--device", "cpu")
    assert len(workdir.workers()) == 2


def test_a_killed_job_leaves_its_gpu_to_the_next(workdir: Workdir) -> None:
    workdir.environment["CUDA_VISIBLE_DEVICES"] = "0,1"
    jobs = [
        workdir.start(f"job-{n}", "--gpus", "2", **workdir.fault_spec("sleep", 2)) for n in range(2)
    ]
    wait_until(lambda: len(workdir.faults_done()) == 2)
    for job in jobs:
        job.kill()
        job.wait()
    ends(workdir, 2, "--gpus", "2")


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
    with pytest.raises(UserError, match=message), gpu_share(gpus, 1, device):
        pass


@pytest.mark.usefixtures("two_gpus")
def test_gpus_fill_evenly_and_a_share_that_ends_is_free() -> None:
    """Two GPUs with two jobs each; locks conflict within a process as between processes."""
    with contextlib.ExitStack() as held:
        shares = [held.enter_context(gpu_share(2, 2, "cuda")) for _ in range(3)]
        with gpu_share(2, 2, "cuda") as last:
            shares.append(last)
        with gpu_share(2, 2, "cuda") as again:
            shares.append(again)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == [
        "4",
        "7",
        "4",
        "7",
        "7",
    ]


@pytest.mark.usefixtures("two_gpus")
def test_workers_of_a_gpu_fill_after_the_first_of_each_gpu() -> None:
    with contextlib.ExitStack() as held:
        shares = [
            held.enter_context(gpu_share(2, 1, "cuda", workers_per_gpu=2)).environment
            for _ in range(4)
        ]
    assert [(share["CUDA_VISIBLE_DEVICES"], share[WORKER_VARIABLE]) for share in shares] == [
        ("4", ".0"),
        ("7", ".0"),
        ("4", ".1"),
        ("7", ".1"),
    ]


@pytest.mark.usefixtures("two_gpus")
def test_workers_of_one_gpu_have_all_that_is_visible() -> None:
    with (
        gpu_share(1, 1, "cuda:1", workers_per_gpu=2) as one,
        gpu_share(1, 1, "cuda:1", workers_per_gpu=2) as two,
    ):
        assert one.environment == {WORKER_VARIABLE: ".0"}
        assert two.environment == {WORKER_VARIABLE: ".1"}


def test_workers_of_a_gpu_make_the_same_artifacts(workdir: Workdir) -> None:
    arguments = ("--workers-per-gpu", "2", "--batch-size", "2", "--prefix-memory", "50%")
    stderr = ends(workdir, 4, *arguments)
    assert sum(text.count("loading") for text in stderr) == 2
    assert len({tuple(artifact_digests(workdir, f"job-{number}")) for number in range(4)}) == 1


def test_one_job_at_once_has_all_that_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 2")
    assert visible_gpus() == ["1", "2"]
    with gpu_share(1, 1, "cuda:1") as gpu:
        assert gpu.environment == {}


@pytest.mark.usefixtures("two_gpus")
def test_a_job_goes_to_the_gpu_whose_worker_has_looked_ahead_at_its_run() -> None:
    """Also while others hold all shares of both GPUs: the worker has counted the run already."""
    claim("looked at", 1, 2)
    with contextlib.ExitStack() as held:
        shares = [held.enter_context(gpu_share(2, 1, "cuda", run)) for run in ("one", "two")]
        assert [share.number for share in shares] == [0, 1]
        with gpu_share(2, 1, "cuda", "looked at") as gpu:
            assert (gpu.number, gpu.environment) == (1, {"CUDA_VISIBLE_DEVICES": "7"})
        found: list[int] = []

        def wait_for_a_share() -> None:
            with gpu_share(2, 1, "cuda", "late") as gpu:
                found.append(gpu.number)

        waiting = threading.Thread(target=wait_for_a_share, daemon=True)
        waiting.start()
        claim("late", 1, 2)
        waiting.join(LIMIT_S)
        assert found == [1]
    with gpu_share(2, 1, "cuda", "two") as again:
        assert again.number == 1, "a job that is started again finds what was computed"


@pytest.mark.usefixtures("two_gpus")
def test_a_job_does_not_wait_for_a_worker_that_looked_ahead_and_has_ended() -> None:
    planned = [f"m/d/p/stale/t/0/{number:03d}" for number in range(8)]
    asked = planned[0]
    assert claim(asked, 1, 2) == 1
    assert RunClaims(1, 2, 4).take(planned[1:], lambda run: False, 16)[0] == planned[1:5]
    found = []
    for run in (asked, *planned[1:5]):
        with gpu_share(2, 4, "cuda", run, serves=lambda environment: False) as gpu:
            found.append(gpu.number)
    # Its own GPU for the run that a job has asked for there; the others as if they were new.
    assert found == [1, 0, 0, 1, 0]
    assert owner(planned[4], 2) == (0, False)


@pytest.mark.usefixtures("two_gpus")
def test_a_job_whose_run_no_gpu_has_goes_to_the_one_with_the_fewest() -> None:
    """Jobs of claimed runs hold no share, so the shares do not tell which GPU has nothing to do."""
    for run in ("one", "two"):
        claim(run, 0, 2)
    found = []
    for run in ("three", "four", "five"):
        with gpu_share(2, 1, "cuda", run) as gpu:
            found.append(gpu.number)
    assert found == [1, 1, 0]
