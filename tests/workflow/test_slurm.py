"""The workflow through profiles/slurm on a Slurm of four nodes gives what a local run gives."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvfidelity.analysis.table_names import TABLES_OF_RULE
from tests.forked_python import NOT_FORKED
from tests.waiting import FOREVER_S, LIMIT_S
from tests.workflow.project import FILES_OF_A_RUN, Project, command, environment
from tests.workflow.slurm import Cluster, cluster, missing, wait_until

WHY_NOT = missing()
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no Slurm here: {WHY_NOT}"),
    pytest.mark.long(150),
    pytest.mark.timeout(3000),  # ten minutes on a busy machine
]
#: Snakemake that asks Slurm every second: the plugin waits ten seconds longer each time that no job
#: has ended, which is most of what a small workflow takes.
SNAKEMAKE = """
import sys
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.next_seconds_between_status_checks = property(lambda _: 1, lambda *_: None)
sys.argv[0] = "snakemake"
main()
"""
#: What these tests set otherwise in the profile: as many threads as locally, and Slurm asked at
#: once, and by squeue, for there is no accounting.
CHANGES = {
    "generate=4": "generate=2",
    "score_corruptions=4": "score_corruptions=2",
    "status-checks: 20": "status-checks: 1",
    "# slurm-status-command: squeue": "slurm-status-command: squeue",
}
IN_THREES = {"runs_{model}_{dataset}_{dialogue}=16": "runs_{model}_{dataset}_{dialogue}=3"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


def copied(project: Project, folder: Path, **changes: str) -> Project:
    """A project whose profile fits this cluster."""
    made = project.copy(folder)
    for old, new in (CHANGES | changes).items():
        made.edit("profiles/slurm/config.yaml", old, new)
    return made


@contextlib.contextmanager
def started(
    project: Project, slurm: Cluster, log: Path, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake with the profile; at the end neither it nor a job of its is left."""
    starting = [sys.executable, "-c", SNAKEMAKE, "--profile", "profiles/slurm", *arguments]
    path = f"{slurm.folder}/bin{os.pathsep}{environment()['PATH']}"
    # So that a worker that ends was ended.
    own = slurm.environment | {"PATH": path, "KVFIDELITY_WORKER_IDLE_S": str(FOREVER_S)}
    own |= NOT_FORKED  # the scheduler ends what its jobs have started
    with log.open("ab") as output:
        process = subprocess.Popen(
            starting,
            cwd=project.folder,
            env=environment() | own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        slurm.clear()


def kept(project: Project) -> set[Path]:
    """Runs that jobs of the scheduler's have finished so far."""
    folder = project.folder / ".snakemake/kvfidelity-salvage"
    return {note.parent for note in folder.glob("*/sha256.json")}


def of(slurm: Cluster, group: str, *states: str) -> set[str]:
    """Jobs of a group."""
    return {job for job, about in slurm.jobs(*states).items() if f"rule_{group}_" in about}


def megabytes(slurm: Cluster, job: str) -> int:
    """Memory that a job asks for."""
    return int(slurm.about(job)["MinMemoryNode"].removesuffix("M"))


def generate_logs(project: Project) -> list[str]:
    return [log.read_text() for log in (project.folder / "logs/generate").rglob("*.log")]


def workers(project: Project) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        output = process.info["cmdline"] or []
        if "kvfidelity.worker.server" in output and process.info["cwd"] == str(project.folder):
            found.append(process)
    return found


def computing(project: Project, slurm: Cluster) -> tuple[str, str] | None:
    """A job of generate's that has a worker, and its node."""
    for worker in workers(project):
        with contextlib.suppress(psutil.Error):
            around = worker.environ()
            if around["SLURM_JOB_ID"] in of(slurm, "runs", "RUNNING"):
                return around["SLURM_JOB_ID"], around["SLURMD_NODENAME"]
    return None


def test_a_batch_on_a_scheduler_is_one_line(fresh: Project, slurm: Cluster, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    project.configure({"session": {"batch_size": 2}})
    log = tmp_path / "snakemake.log"
    with started(project, slurm, log, "only_generate") as process:
        assert process.wait(LIMIT_S) != 0
    assert "error: session.batch_size is 2, but a scheduler's jobs run one after" in log.read_text()
    assert "Traceback" not in log.read_text()


def copy_runs(project: Project, dialogue: str) -> None:
    """Artifacts of the first dialogue's runs as those of another."""
    for run in (project.folder / "results/generate").glob("*/*/*/*/*/*/000"):
        shutil.copytree(run, run.with_name(dialogue), dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("group", "jobs", "gpu", "cpus", "memory", "minutes"),
    [("texts", 3, 0, 1, 2000, 3), ("runs", 16, 1, 2, 3000, 5), ("runs", 16, 0, 2, 3000, 5)],
)
def test_the_jobs_of_a_group_ask_for_what_one_asks_for_but_for_time(
    finished: Project,
    slurm: Cluster,
    tmp_path: Path,
    group: str,
    jobs: int,
    gpu: int,
    cpus: int,
    memory: int,
    minutes: int,
) -> None:
    """What --set-resources sets leaves the other requests as they are."""
    project = copied(finished, tmp_path / "project")
    if group == "texts":
        project.configure({"datasets": {"own": {"count": jobs}}})
        dialogues = [f"{number:03d}" for number in range(jobs)]
        for dialogue in dialogues[1:]:
            copy_runs(project, dialogue)
        shutil.rmtree(project.folder / "results/metrics")
        targets = [f"results/metrics/tiny/own/{number}/metrics.parquet" for number in dialogues]
    else:
        policies = {f"own{n}": {"kind": "streaming_llm", "sinks": n} for n in range(jobs)}
        project.configure({"policies": policies})
        runs = [f"tiny/own/{name}/stale/small/0/000" for name in policies]
        targets = [f"results/generate/{run}/turns.parquet" for run in runs]
    known = [f"generate:{key}" for key in (f"gpu={gpu}", "mem_mb=3000", "runtime=5")]
    log = tmp_path / "snakemake.log"
    slurm.drain()
    try:
        with started(project, slurm, log, "--set-resources", *known, "--", *targets):
            wait_until(lambda: of(slurm, group), log.read_text)
            [asked] = map(slurm.about, of(slurm, group))
    finally:
        slurm.resume()
    assert (asked["NumCPUs"], asked["MinMemoryNode"]) == (str(cpus), f"{memory}M")
    hours, rest = divmod(jobs * minutes, 60)
    assert asked["TimeLimit"] == f"{hours:02d}:{rest:02d}:00"
    assert asked.get("TresPerJob", "").count("gpu") == gpu


def test_a_group_that_fits_no_node_fails_and_a_line_says_where_to_look(
    finished: Project, slurm: Cluster, tmp_path: Path
) -> None:
    """Snakemake itself says no more than that the group failed."""
    project = copied(finished, tmp_path / "project")
    shutil.rmtree(project.folder / "results/metrics")
    log = tmp_path / "snakemake.log"
    with started(project, slurm, log, "--set-resources", "measure:mem_mb=64001") as process:
        assert process.wait(LIMIT_S) != 0
    output = log.read_text()
    assert re.search(r"failed: \w+ tiny/own/", output)
    assert "failed without a log of its job was refused by the scheduler: docs/cluster.md" in output


def test_a_killed_job_a_lost_node_and_a_resumed_run_give_the_artifacts_of_a_local_run(
    prepared: Project, finished: Project, slurm: Cluster, tmp_path: Path
) -> None:
    project = copied(prepared, tmp_path / "project", **IN_THREES)
    log = tmp_path / "snakemake.log"
    with started(project, slurm, log) as first:
        # Jobs are killed once one has made its first run, and the nodes take no more.
        wait_until(lambda: kept(project), log.read_text, pause_s=0.05)
        before, known = kept(project), of(slurm, "runs")
        slurm.drain()
        slurm.ask("scancel", *of(slurm, "runs", "RUNNING"), check=False)
        # Snakemake hands them in again, for twice the memory; they wait for a node.
        wait_until(lambda: of(slurm, "runs", "PENDING") - known, log.read_text)
        assert not of(slurm, "runs", "RUNNING")
        old, new = (
            max(megabytes(slurm, job) for job in jobs)
            for jobs in (known, of(slurm, "runs", "PENDING") - known)
        )
        assert new == pytest.approx(2 * old, rel=0.01)
        # Else the job that scores corruptions may be cancelled once its artifact is there.
        wait_until(lambda: not slurm.jobs("RUNNING", "COMPLETING"), log.read_text)
        first.send_signal(signal.SIGINT)
        assert first.wait(LIMIT_S) != 0
    slurm.resume()
    with started(project, slurm, log) as second:
        wait_until(lambda: computing(project, slurm), log.read_text, pause_s=0.2)
        lost: Any = computing(project, slurm)
        job, node = lost
        slurm.lose(node)
        wait_until(lambda: slurm.about(job)["Restarts"] == "1", slurm.logs)
        assert second.wait(3 * LIMIT_S) == 0, log.read_text()[-5000:]
    slurm.start(node)
    assert (slurm.about(job)["JobState"], slurm.about(job)["NodeList"] != node) == (
        "COMPLETED",
        True,
    )
    output = generate_logs(project)
    assert sum("from an earlier job that was killed" in text for text in output) >= len(before)
    # What asks judges ran here, the rest in jobs of Slurm's.
    done = slurm.jobs("COMPLETED").values()
    assert {about.split("_")[1] for about in done} == {
        "dialogues",
        "runs",
        "score",
        "texts",
        "analysis",
    }
    assert len(of(slurm, "runs", "COMPLETED")) == 2, "five runs, three a job"
    # A job's runs share the model: each log is of a run's latest attempt.
    computed = [text for text in output if "from an earlier job" not in text]
    assert sum(text.count("loading") for text in computed) <= 3, "one for each job and restart"
    assert project.digests() == finished.digests()
    assert files(project) == files(finished)
    assert not kept(project)
    wait_until(lambda: not workers(project), log.read_text)


def test_the_whole_workflow_in_a_job_of_one_node_gives_the_artifacts_of_a_local_run(
    prepared: Project, finished: Project, slurm: Cluster, tmp_path: Path
) -> None:
    """As docs/cluster.md says for nodes that are allocated whole."""
    project = prepared.copy(tmp_path / "project")
    log = tmp_path / "job.log"
    wrapped = shlex.join(["env", f"PATH={environment()['PATH']}", *command("aggregate")])
    asked = ("--nodes=1", "--cpus-per-task=2", f"--chdir={project.folder}", f"--output={log}")
    job = slurm.ask("sbatch", "--parsable", *asked, f"--wrap={wrapped}").strip()
    try:
        wait_until(
            lambda: slurm.about(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"),
            slurm.logs,
        )
        assert slurm.about(job)["JobState"] == "COMPLETED", log.read_text()
    finally:
        slurm.clear()
    there = finished.digests()
    made = project.digests()
    assert made == {path: there[path] for path in made}
    tables = [path for path in made if path.startswith("results/tables/")]
    assert len(tables) == len(TABLES_OF_RULE["aggregate"])
    assert sum(path.startswith("results/generate/") for path in made) == 5 * FILES_OF_A_RUN


def files(project: Project) -> set[Path]:
    """What was made, the report among it."""
    folder = project.folder / "results"
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert Path("report.html") in found
    return found
