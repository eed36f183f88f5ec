"""A workflow folder with a tiny model and a pool, where jobs run as the workflow runs them."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvfidelity.dialogues.pool import KIND, pool_frame
from kvfidelity.generation.spec import RunSpec
from kvfidelity.pipeline.code_digest import policies_digest, stage_digest
from kvfidelity.records.artifacts import write_parquet
from tests import forked_python
from tests.models.tiny import save_tiny
from tests.waiting import FOREVER_S, LIMIT_S, wait_until

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
LIBRARY = Path(__file__).parents[2] / "src"
FAULT_POLICY = Path(__file__).with_name("fault_policy.py")
#: What a job's specification says, unless a test says otherwise.
CELL: dict[str, Any] = {
    "model": "tiny",
    "dataset": "two",
    "policy": "recent",
    "kind": "fault_policy",
    "positions": "rerotated",
    "threshold": "small",
    "at": "60tok",
    "target": "40tok",
    "policy_files": (str(FAULT_POLICY),),
}


@functools.cache
def digests() -> tuple[str, ...]:
    """What a workflow tells its jobs, each of which would look at all code for it."""
    return ("--code-digest", stage_digest("generate"), "--policies-digest", policies_digest())


@dataclass
class Workdir:
    """A folder in which a workflow runs, with helpers to run jobs there."""

    folder: Path
    runtime: Path
    environment: dict[str, str] = field(default_factory=dict)

    def job(self, name: str, *arguments: str, **spec: Any) -> list[str]:
        """The command of one generate job; its artifacts go to <name>/."""
        run_spec = RunSpec(**(CELL | spec)).to_json()
        command = [sys.executable, str(SCRIPTS / "generate.py"), "--spec", run_spec]
        command += ["--model-dir", "model", "--threads", "1", "--pool", "pool.parquet"]
        command += ["--dialogue", "000", "--turns", f"{name}/turns.parquet", *digests()]
        return [*command, "--evictions", f"{name}/evictions.parquet", *arguments]

    def start(self, name: str, *arguments: str, **spec: Any) -> subprocess.Popen[str]:
        """Start a job."""
        return subprocess.Popen(
            self.job(name, *arguments, **spec),
            cwd=self.folder,
            env=forked_python.environment() | os.environ | self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, *arguments: str, **spec: Any) -> tuple[int, str]:
        """Run a job; its exit status and what it wrote to standard error."""
        process = self.start(name, *arguments, **spec)
        return self.end(process)

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for a job; its exit status and what it wrote to standard error."""
        try:
            _, stderr = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
            pytest.fail(f"a job hangs; it wrote:\n{stderr}\nits worker:\n{self.stacks()}")
        return process.returncode, stderr

    def stacks(self) -> str:
        """The sockets of this folder's workers."""
        for process in self.workers():
            process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        return "\n".join(log.read_text() for log in self.runtime.rglob("*.log"))

    def fault_spec(self, fault: str, times: int = 10**6) -> dict[str, Any]:
        """A specification whose policy causes this fault; see fault_policy.py."""
        marker = str(self.folder / "marker")
        return {"parameters": {"fault": fault, "marker": marker, "times": times}}

    def let_go(self) -> None:
        """End the fault "hold", also for later policies."""
        (self.folder / "marker.go").touch()

    def faults_done(self) -> list[int]:
        """Ids of the processes that caused the fault, in order."""
        marker = self.folder / "marker"
        return [int(line) for line in marker.read_text().splitlines()] if marker.exists() else []

    def stop(self) -> None:
        """What the workflow does at its end."""
        command = [sys.executable, str(SCRIPTS / "stop_worker.py")]
        subprocess.run(command, cwd=self.folder, env=os.environ | self.environment, check=True)

    def workers(self) -> list[psutil.Process]:
        """This folder's workers that are alive."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            cmdline = process.info["cmdline"] or []
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and any(part.startswith(str(self.runtime)) for part in cmdline):
                found.append(process)
        return found

    def worker(self) -> psutil.Process:
        """The one worker."""
        [process] = self.workers()
        return process


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@contextlib.contextmanager
def make_workdir(model: Path, folder: Path) -> Iterator[Workdir]:
    """A workflow's folder; at the test's end no worker may be left."""
    # Not in pytest's folder, whose path is too long for a socket.
    runtime = Path(tempfile.mkdtemp(prefix="kvf-"))
    environment = {"XDG_RUNTIME_DIR": str(runtime), "OMP_NUM_THREADS": "1"}
    # So that a worker that ends was ended.
    environment["KVFIDELITY_WORKER_IDLE_S"] = str(FOREVER_S)
    workdir = Workdir(folder, runtime, environment)
    shutil.copytree(model, folder / "model")
    write_pool(folder / "pool.parquet")
    try:
        yield workdir
        workdir.stop()
        wait_until(lambda: not workdir.workers())
    finally:
        for process in workdir.workers():
            process.kill()
        shutil.rmtree(runtime)


@pytest.fixture
def workdir(tiny_model: Path, tmp_path: Path) -> Iterator[Workdir]:
    """A new folder, without a worker."""
    with make_workdir(tiny_model, tmp_path) as workdir:
        yield workdir


@pytest.fixture(scope="session")
def shared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workdir]:
    with make_workdir(tiny_model, tmp_path_factory.mktemp("shared")) as workdir:
        yield workdir


@pytest.fixture
def warm(shared: Workdir) -> Workdir:
    """A folder shared with other tests, with a warm worker and without artifacts."""
    for path in shared.folder.iterdir():
        if path.name.startswith("marker"):
            path.unlink()
        elif path.is_dir() and path.name != "model":
            shutil.rmtree(path)
    write_pool(shared.folder / "pool.parquet")
    code, stderr = shared.run("warming")
    assert code == 0, stderr
    return shared


def write_pool(file: Path, turns: int = 5) -> None:
    """A pool of two dialogues of about 50 tokens a turn."""
    rows: list[dict[str, object]] = [
        {
            "dialogue_id": f"talk-{number}",
            "turns": [
                {"user": f"say {number} and {turn}", "assistant": "it is " * 3}
                for turn in range(turns)
            ],
            "n_turns": turns,
            "n_tokens": 50 * turns,
            "language": "en",
            "source": "test",
            "questions": [],
        }
        for number in range(2)
    ]
    write_parquet(pool_frame(rows), file, kind=KIND)
