"""Jobs that share a worker get the same artifacts as jobs without one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import kvfidelity
from kvfidelity.records.artifacts import digest, read_metadata, read_parquet
from kvfidelity.records.grid import GENERATED
from kvfidelity.records.notes import MADE
from tests.waiting import wait_until
from tests.worker.conftest import SCRIPTS, Workdir, write_pool


def artifact_digests(workdir: Workdir, name: str) -> list[str]:
    """Content digests of a job's artifacts, timings aside."""
    return [
        digest(read_parquet(workdir.folder / name / f"{kind}.parquet", kind=kind))
        for kind in GENERATED
    ]


def lasting_notes(workdir: Workdir, name: str) -> dict[str, str]:
    """A job's notes without when it was made, and the time and memory it took."""
    notes = read_metadata(workdir.folder / name / "turns.parquet")
    return {
        key: value for key, value in notes.items() if key != MADE and not key.startswith("worker_")
    }


def test_a_worker_and_a_job_without_one_give_identical_artifacts(warm: Workdir) -> None:
    own = {"replies": "own", "max_new_tokens": 8, "temperature": 0.8, "seed": 3}
    assert warm.run("alone", "--no-worker", **own)[0] == 0
    for name in ("first", "second"):
        assert warm.run(name, **own)[0] == 0
        assert artifact_digests(warm, name) == artifact_digests(warm, "alone")
        assert lasting_notes(warm, name) == lasting_notes(warm, "alone")
    evictions = read_parquet(warm.folder / "alone/evictions.parquet", kind="evictions")
    assert evictions.height > 1


def test_consecutive_jobs_load_the_model_once(workdir: Workdir) -> None:
    """The worker imports from its client's folders, and first from the client's own source."""
    source = str(Path(kvfidelity.__file__).parents[1])
    workdir.environment["PYTHONPATH"] = os.pathsep.join([source, "elsewhere"])
    stderr = [workdir.run(f"job-{number}")[1] for number in range(3)]
    paths = workdir.worker().environ()["PYTHONPATH"].split(os.pathsep)
    assert paths == [source, source, "elsewhere"]
    assert [text.count("loading") for text in stderr] == [1, 0, 0]
    assert "turn 5 of 5: " in stderr[2]
    assert "cached tokens" in stderr[2]


def test_clients_that_start_at_once_share_one_worker(workdir: Workdir) -> None:
    jobs = [workdir.start(f"job-{number}") for number in range(4)]
    ends = [workdir.end(job) for job in jobs]
    stderr = [text for _, text in ends]
    assert [code for code, _ in ends] == [0] * 4, stderr
    assert sum(text.count("loading") for text in stderr) == 1
    assert len(workdir.workers()) == 1
    assert len({tuple(artifact_digests(workdir, f"job-{n}")) for n in range(4)}) == 1


def test_other_code_or_another_model_replaces_the_worker(workdir: Workdir) -> None:
    workdir.run("job")
    first = workdir.worker().pid
    code, stderr = workdir.run("job", "--code-digest", "new")
    assert (code, stderr.count("loading")) == (0, 1)
    assert workdir.worker().pid != first
    # The same model fetched again is in another folder.
    (workdir.folder / "model").rename(workdir.folder / "old")
    subprocess.run(["cp", "-r", "old", "model"], cwd=workdir.folder, check=True)
    code, stderr = workdir.run("job", "--code-digest", "new")
    assert (code, stderr.count("loading")) == (0, 1)


def test_clients_of_two_alternating_models_are_all_served(workdir: Workdir) -> None:
    jobs = [
        workdir.start(f"job-{number}", "--dtype", ("float32", "bfloat16")[number % 2])
        for number in range(4)
    ]
    ends = [workdir.end(job) for job in jobs]
    stderr = [text for _, text in ends]
    assert [code for code, _ in ends] == [0] * 4, stderr
    assert "died" not in "".join(stderr)
    assert len(workdir.workers()) == 1


def test_two_workflows_on_one_machine_have_separate_workers(
    workdir: Workdir, tmp_path: Path
) -> None:
    workdir.run("job")
    other = Workdir(tmp_path / "other", workdir.runtime, workdir.environment)
    other.folder.mkdir()
    (other.folder / "model").symlink_to(workdir.folder / "model")
    write_pool(other.folder / "pool.parquet")
    other.run("job")
    assert len(workdir.workers()) == 2
    other.stop()
    wait_until(lambda: len(workdir.workers()) == 1)
    assert workdir.run("again")[1].count("loading") == 0


def test_an_idle_worker_exits(workdir: Workdir) -> None:
    workdir.environment["KVFIDELITY_WORKER_IDLE_S"] = "0.5"
    assert workdir.run("job")[0] == 0
    wait_until(lambda: not workdir.workers())
    assert list(workdir.runtime.rglob("*.sock")) == []
    assert workdir.run("again")[0] == 0


def test_a_worker_that_waits_is_idle_not_busy(warm: Workdir) -> None:
    before = sum(warm.worker().cpu_times()[:2])
    time.sleep(1)
    assert sum(warm.worker().cpu_times()[:2]) - before < 0.05


def test_a_job_that_is_told_no_digests_finds_the_same_ones(warm: Workdir) -> None:
    code, stderr = warm.run("job", "--code-digest", "", "--policies-digest", "")
    assert (code, stderr.count("loading")) == (0, 0), stderr


def test_an_invalid_idle_time_is_one_line(workdir: Workdir) -> None:
    for idle in ("soon", "0", "-1", "nan"):
        workdir.environment["KVFIDELITY_WORKER_IDLE_S"] = idle
        code, stderr = workdir.run("job")
        assert code == 2
        assert stderr.startswith(f"error: KVFIDELITY_WORKER_IDLE_S is '{idle}'")
        assert len(stderr.splitlines()) == 1


def test_stopping_without_a_worker_prints_nothing(workdir: Workdir) -> None:
    workdir.stop()
    workdir.stop()


def test_the_client_imports_nothing_heavy() -> None:
    probe = "import sys, runpy; sys.argv[1:] = ['--help']\n"
    probe += f"try: runpy.run_path({str(SCRIPTS / 'generate.py')!r}, run_name='__main__')\n"
    probe += "except SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "kvfidelity.worker.client" in loaded
    assert not loaded & {"torch", "transformers", "polars", "numpy", "yaml", "jsonschema"}
