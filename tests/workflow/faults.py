"""Faults of a workflow, and what its user would then do.

Each fault damages or kills something, checks that the message says what happened, and does what the
message says. The caller then runs the workflow again.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet
from kvfidelity.records.grid import dialogue_of
from tests.waiting import LIMIT_S
from tests.workflow.project import Project, environment

RUN = "tiny/own/random/stale/small/0/000"
LOCKED = "--unlock"


@dataclass
class Scenario:
    """A project, the targets of its run, and how long that takes; chance decides the rest."""

    project: Project
    dice: random.Random
    seconds: float
    targets: list[str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.project.snakemake(*self.targets, *arguments)

    def failed(self, *arguments: str) -> str:
        """Run it, expecting that it fails; returns its output."""
        done = self.run(*arguments)
        assert done.returncode != 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def succeeded(self) -> None:
        done = self.run()
        assert done.returncode == 0, done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """While it runs, up to a random moment; it is waited for at the end."""
        process = self.project.start(*self.targets)
        try:
            time.sleep(self.dice.uniform(0.1, 1.0) * self.seconds)
            yield process
            process.wait(3 * LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Processes that work in the project's folder and have `part` in their command."""
        return [
            process
            for process in psutil.process_iter(["cwd", "cmdline", "status"])
            if process.info["cwd"] == str(self.project.folder)
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and part in " ".join(process.info["cmdline"] or [])
        ]

    def kill_one(self, part: str) -> bool:
        """SIGKILL one of them, if there is one; waits a while for one to come."""
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            # The shell's own command names the script, too.
            found = [p for p in self.processes(part) if "bash" not in Path(_program(p)).name]
            if found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.dice.choice(found).kill()
                    return True
            time.sleep(0.02)
        return False

    @property
    def results(self) -> Path:
        return self.project.folder / "results"


def killed_snakemake(scenario: Scenario) -> None:
    """Its jobs continue for a while without it."""
    process = scenario.project.start(*scenario.targets)
    time.sleep(scenario.dice.uniform(0.1, 1.0) * scenario.seconds)
    process.kill()
    process.wait()
    output = scenario.project.snakemake(*scenario.targets)
    if output.returncode:  # killed before it had a lock, there is nothing to unlock
        assert LOCKED in output.stdout + output.stderr
        assert scenario.project.snakemake("--unlock").returncode == 0


def killed_worker(scenario: Scenario) -> None:
    """The run continues and succeeds."""
    with scenario.running() as process:
        scenario.kill_one("kvfidelity.worker.server")
    assert process.returncode == 0


def killed_client(scenario: Scenario) -> None:
    with scenario.running() as process:
        killed = scenario.kill_one("scripts/generate.py")
    assert process.returncode != 0 or not killed


def killed_judge(scenario: Scenario) -> None:
    with scenario.running() as process:
        killed = scenario.kill_one("scripts/judge.py")
    assert process.returncode != 0 or not killed


def two_at_once(scenario: Scenario) -> None:
    """The second waits; the first is not disturbed."""
    with scenario.running() as process:
        if process.poll() is None:
            output = scenario.run()
            if process.poll() is None:
                assert output.returncode != 0
                assert "locked" in output.stdout + output.stderr
    assert process.returncode == 0


def full_disk(scenario: Scenario) -> None:
    """Results on a disk with a few hundred bytes free."""
    size = sum(path.stat().st_size for path in scenario.results.rglob("*") if path.is_file())
    with _mounted(scenario.results, f"size={size // 4096 * 4096 + 64 * 1024}") as disk:
        filling = scenario.results / "filling"
        with contextlib.suppress(OSError), filling.open("wb") as file:
            while True:
                file.write(b"0" * 256)
                file.flush()
        output = scenario.failed()
        assert "no space left on the disk that holds" in output, output
        assert "free some and run the same command again" in output
        assert _half_written(scenario.results) == []
        filling.unlink()
        disk("remount,size=50m")
        scenario.succeeded()


def read_only_results(scenario: Scenario) -> None:
    with _mounted(scenario.results, "size=50m") as disk:
        disk("remount,ro")
        output = scenario.failed()
        assert "Read-only file system" in output, output
        assert "results" in output
        disk("remount,rw")
        scenario.succeeded()


def truncated_table(scenario: Scenario) -> None:
    damaged = scenario.results / scenario.dice.choice(
        [f"generate/{RUN}/turns.parquet", f"metrics/{dialogue_of(RUN)}/metrics.parquet"]
    )
    size = damaged.stat().st_size
    damaged.write_bytes(damaged.read_bytes()[: scenario.dice.randrange(size)])
    shutil.rmtree(scenario.results / "judge")
    output = scenario.failed()
    name = damaged.relative_to(scenario.project.folder)
    assert f"error: {name} is damaged" in output, output
    assert "delete it and run again" in output
    _verify(scenario, f"damaged: {name}")


def damaged_model(scenario: Scenario) -> None:
    """A bit flipped, a file cut short, or emptied."""
    file = scenario.project.folder / "resources/models/tiny/model.safetensors"
    whole = file.read_bytes()
    path = scenario.dice.randrange(len(whole) // 2, len(whole))
    flipped = whole[:path] + bytes([whole[path] ^ 1]) + whole[path + 1 :]
    file.unlink()  # it is a second name of the file that it was taken from
    file.write_bytes(scenario.dice.choice([flipped, whole[:path], b""]))
    output = scenario.failed()
    assert "error: " in output
    assert "model.safetensors is damaged" in output, output
    assert "delete the model's folder and run again" in output
    shutil.rmtree(file.parent)


def other_schema_version(scenario: Scenario) -> None:
    file = scenario.results / f"generate/{RUN}/turns.parquet"
    notes = {key: read_metadata(file)[key] for key in ("code", "spec")} | {"schema_version": "0"}
    write_parquet(read_parquet(file, kind="turns"), file, kind="turns", metadata=notes)
    shutil.rmtree(scenario.results / "judge")
    output = scenario.failed()
    name = file.relative_to(scenario.project.folder)
    assert f"error: {name} has schema version 0, this code writes 1" in output, output
    _verify(scenario, f"outdated: {name}: schema version 0")


def clock_set_back(scenario: Scenario) -> None:
    """All files are dated in the future, and a run is missing."""
    ahead = scenario.dice.uniform(100, 100_000)
    for folder in (scenario.results, scenario.project.folder / "resources"):
        for file in folder.rglob("*"):
            moment = file.stat().st_mtime + ahead
            os.utime(file, (moment, moment))
    shutil.rmtree(scenario.results / "generate" / RUN)
    done = scenario.run()
    assert "files were dated in the future" in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert scenario.project.planned(*scenario.targets) == set()


#: Taken in this order, so that a few rounds have different faults.
FAULTS: list[Callable[[Scenario], None]] = [
    killed_snakemake,
    killed_worker,
    truncated_table,
    killed_judge,
    full_disk,
    killed_client,
    damaged_model,
    two_at_once,
    read_only_results,
    other_schema_version,
    clock_set_back,
]

#: Faults of a finished run.
AFTERWARDS = {truncated_table, other_schema_version, clock_set_back}


def _program(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _half_written(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp-*"))


def _verify(scenario: Scenario, expected: str) -> None:
    """Have what is wrong moved aside."""
    done = subprocess.run(
        [sys.executable, "workflow/scripts/verify.py", "results", "--remove"],
        cwd=scenario.project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout, done.stdout + done.stderr


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A folder's content on a small disk of its own; back in the folder afterwards."""

    def mount(options: str, *arguments: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")

    aside = folder.with_name("aside")
    shutil.copytree(folder, aside)
    mount(options)
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield mount
        shutil.rmtree(aside)
        shutil.copytree(folder, aside)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    shutil.rmtree(folder)
    aside.rename(folder)
