"""The workflow through profiles/slurm on a real Slurm of one node gives what a local run gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.workflow.project import Project, environment
from tests.workflow.slurm import Cluster, cluster, missing

WHY_NOT = missing()
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no Slurm here: {WHY_NOT}"),
    pytest.mark.timeout(900),  # two and a quarter minutes where nothing else runs
]
#: What this test sets otherwise in the profile: jobs of three runs, as many threads as locally,
#: Slurm asked every other second, and by squeue, for there is no accounting.
CHANGES = {
    "runs_{model}_{dataset}_{dialogue}=16": "runs_{model}_{dataset}_{dialogue}=3",
    "generate=4": "generate=2",
    "status-checks: 20": "status-checks: 2",
    "# slurm-status-command: squeue": "slurm-status-command: squeue",
}
TABLES = "results/tables/policies.parquet"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


def start(project: Project, slurm: Cluster, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=project.folder,
            env=environment() | slurm.environment | {"PATH": path(slurm)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def path(slurm: Cluster) -> str:
    return f"{slurm.folder}/bin{os.pathsep}{environment()['PATH']}"


def wait_for(holds: Callable[[], object], what: str, log: Path, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}\n{log.read_text()[-5000:]}"
        time.sleep(0.1)


def kept(project: Project) -> set[Path]:
    """Runs that jobs of the scheduler's have finished so far."""
    folder = project.folder / ".snakemake/kvfidelity-salvage"
    return {note.parent for note in folder.glob("*/sha256.json")}


def generating(slurm: Cluster, *states: str) -> set[str]:
    return {job for job, about in slurm.jobs(*states).items() if "runs_" in about}


def generate_logs(project: Project) -> list[str]:
    return [log.read_text() for log in (project.folder / "logs/generate").rglob("*.log")]


def workers(project: Project) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        output = process.info["cmdline"] or []
        if "kvfidelity.worker.server" in output and process.info["cwd"] == str(project.folder):
            found.append(process)
    return found


def test_a_batch_on_a_scheduler_is_one_line(fresh: Project, slurm: Cluster, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    project.configure({"session": {"batch_size": 2}})
    log = tmp_path / "snakemake.log"
    process = start(project, slurm, log, "generated")
    try:
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert "error: session.lanes is 2, but a scheduler's jobs run one after" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_jobs_killed_node_drained_run_resumed_and_artifacts_equal_a_local_runs(
    fresh: Project, finished: Project, slurm: Cluster, tmp_path: Path
) -> None:
    project = fresh.copy(tmp_path / "project")
    for old, new in CHANGES.items():
        project.edit("profiles/slurm/config.yaml", old, new)
    log = tmp_path / "snakemake.log"
    first = start(project, slurm, log, TABLES)
    try:
        # Jobs are killed once one has made its first run, and the node takes no more.
        wait_for(lambda: kept(project), "no run is finished", log)
        before, known = kept(project), generating(slurm)
        killed = generating(slurm, "RUNNING")
        slurm.ask("scontrol", "update", "nodename=node", "state=drain", "reason=test")
        slurm.ask("scancel", *killed)
        # Snakemake hands it in again; it waits for the node.
        wait_for(lambda: generating(slurm, "PENDING") - known, "no job comes again", log)
        assert not generating(slurm, "RUNNING")
        first.send_signal(signal.SIGINT)
        assert first.wait(60) != 0
    finally:
        first.kill()
        first.wait()
    wait_for(lambda: not slurm.jobs(), "jobs stay in the queue", log, 30)
    slurm.ask("scontrol", "update", "nodename=node", "state=resume")
    second = start(project, slurm, log, TABLES)
    try:
        assert second.wait(400) == 0, log.read_text()[-5000:]
    finally:
        second.kill()
        second.wait()
    output = generate_logs(project)
    assert sum("from an earlier job that was killed" in text for text in output) >= len(before)
    jobs = slurm.jobs("COMPLETED")
    done = [job for job, about in jobs.items() if "runs_" in about]
    assert len(done) == 2, "five runs, three a job"
    # A job's runs share the model: each log is of a run's latest attempt.
    computed = [text for text in output if "from an earlier job" not in text]
    assert len(computed) > len(done), "too many were finished before the kill to tell"
    assert sum(text.count("loading") for text in computed) <= len(done)
    expected = finished.digests()
    assert project.digests() == {name: expected[name] for name in project.digests()}
    assert len(project.digests()) > 20
    assert not kept(project)
    wait_for(lambda: not workers(project), "workers stay", log, 15)
