"""SIGTERM to a workflow: what it waits for is printed before that has ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvfidelity.pipeline.termination import message
from tests.cache.policy_examples import OWN as OWN_POLICY
from tests.workflow.project import Project, command, environment

#: It evicts once a file `go` is there, and leaves a file `waits` when it is asked first.
PATIENT = OWN_POLICY.replace(
    "        return -(",
    """        import time
        from pathlib import Path
        Path(FOLDER, "waits").touch()
        while not Path(FOLDER, "go").exists():
            time.sleep(0.05)
        return -(""",
)
LINE = re.compile(
    r"^SIGTERM: no further job starts; waiting for 1 running job to end; Ctrl-C or "
    r"`kill -INT -- -(\d+)` stops them$",
    re.MULTILINE,
)
GENEROUS_S = 120


@pytest.fixture
def waiting(prepared: Project, tmp_path: Path) -> Project:
    """A project whose runs wait for a file."""
    project = prepared.copy(tmp_path / "project")
    (project.folder / "patient.py").write_text(f"FOLDER = {str(project.folder)!r}\n{PATIENT}")
    project.configure(
        {"policy_files": ["patient.py"], "policies": {"mine": {"kind": "every_other"}}}
    )
    return project


@contextlib.contextmanager
def started(project: Project, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The workflow in a process group of its own, with one run that waits."""
    target = "results/generate/tiny/own/mine/stale/small/0/000/turns.parquet"
    following = "results/metrics/tiny/own/000/metrics.parquet"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(target, following),
            cwd=project.folder,
            env=environment(),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        until((project.folder / "waits").exists, log)
        yield process
    finally:
        (project.folder / "go").touch()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_sigterm_says_what_it_waits_for_while_it_waits(waiting: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(waiting, log) as process:
        process.send_signal(signal.SIGTERM)
        until(lambda: LINE.search(log.read_text()), log)
        assert LINE.findall(log.read_text()) == [str(process.pid)]
        assert process.poll() is None
        (waiting.folder / "go").touch()
        assert process.wait(GENEROUS_S) != 0, log.read_text()
    results = waiting.folder / "results"
    assert list(results.glob("generate/**/turns.parquet")), "the running job was not waited for"
    assert not list(results.glob("metrics/**/*.parquet")), "a further job was started"


def test_the_command_that_the_line_names_stops_the_jobs(waiting: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(waiting, log) as process:
        process.send_signal(signal.SIGTERM)
        until(lambda: LINE.search(log.read_text()), log)
        subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
        assert process.wait(GENEROUS_S) != 0
    assert not list(waiting.folder.glob("results/generate/tiny/own/mine/**/turns.parquet"))


def test_jobs_are_counted() -> None:
    assert "waiting for 12 running jobs to end" in message(12, 1)
