"""Runs that are computed ahead: when their clients are answered, and asked for plans."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.generation.spec import RunSpec
from kvfidelity.records.grid import GENERATED
from kvfidelity.worker.client import NextRuns, request
from kvfidelity.worker.job import GenerateJob, WorkerConfig
from kvfidelity.worker.protocol import send
from kvfidelity.worker.socket_path import socket_path
from tests.waiting import LIMIT_S, wait_until
from tests.worker.conftest import CELL, Workdir

CONFIG = WorkerConfig(
    model_dir="model",
    model_revision="",
    dtype="float32",
    device="cpu",
    code_digest="",
    prefix_memory="0GB",
    prefix_disk="0GB",
    store_prefixes="overflow",
    threads=1,
    batch_size=2,
)


#: Python imports it when it starts.
PATIENCE = """
import sys

if "kvfidelity.worker.server" in sys.orig_argv:
    from kvfidelity.worker import batch_server

    batch_server.LATE_CLIENT_S = {seconds}
"""


def with_patience(workdir: Workdir, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long workers wait for the jobs of what they computed ahead, before another model's."""
    (workdir.folder / "site").mkdir()
    (workdir.folder / "site/sitecustomize.py").write_text(PATIENCE.format(seconds=seconds))
    monkeypatch.setenv("PYTHONPATH", str(workdir.folder / "site"))


@contextlib.contextmanager
def taken(config: WorkerConfig, job: GenerateJob) -> Iterator[socket.socket]:
    """The connection of a client whose request a worker has taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(socket_path()))
        asked = {"config": dataclasses.asdict(config), "job": dataclasses.asdict(job)}
        send(connection, {"do": "serve", **asked, "alone": False})
        wait_until(lambda: not bytes_unread(connection))
        yield connection


class Clients:
    """Requests as jobs make them, in this process. asked: number of plans that were asked for.
    loaded: ids of the workers that loaded the model."""

    def __init__(self, workdir: Workdir) -> None:
        self.asked = 0
        self.loaded: list[int] = []
        self._folder = workdir.folder
        self._config = replace(CONFIG, model_dir=str(workdir.folder / "model"))

    def job(self, name: str, **spec: Any) -> GenerateJob:
        folder = self._folder / name
        files = {kind: str(folder / f"{kind}.parquet") for kind in GENERATED}
        pool = str(self._folder / "pool.parquet")
        return GenerateJob(RunSpec(**(CELL | spec)).to_json(), pool, "000", **files)

    def request(
        self, job: GenerateJob, follow: list[GenerateJob], error: Exception | None = None
    ) -> None:
        def plan(limit: int) -> NextRuns:
            self.asked += 1
            if error is not None:
                raise error
            found = [{"spec": j.spec, "pool": j.pool, "dialogue": j.dialogue} for j in follow]
            return NextRuns(found[:limit], more=len(found) >= limit)

        def progress(event: dict[str, Any]) -> None:
            if event["event"] == "loading":
                self.loaded.append(event["pid"])

        request(self._config, job, progress, plan)

    def start(self, job: GenerateJob, error: Exception | None = None) -> threading.Thread:
        thread = threading.Thread(target=self.request, args=(job, [], error), daemon=True)
        thread.start()
        return thread

    def made(self, name: str) -> Callable[[], bool]:
        return (self._folder / name / "turns.parquet").is_file


def bytes_unread(connection: socket.socket) -> int:
    """Bytes that the other end has not read yet."""
    found = fcntl.ioctl(connection, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", found)[0])


@pytest.fixture
def clients(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> Clients:
    monkeypatch.chdir(workdir.folder)
    for name, value in workdir.environment.items():
        monkeypatch.setenv(name, value)
    return Clients(workdir)


def test_what_was_computed_ahead_is_handed_out_while_other_runs_are_computed(
    workdir: Workdir, clients: Clients
) -> None:
    ahead = clients.job("ahead", seed=1, max_turns=2)
    clients.request(clients.job("first", seed=0), [ahead])
    # It has more turns, so the other has ended when it ends.
    clients.request(clients.job("longer", seed=3), [])
    # Its eviction keeps the thread that computes.
    held = clients.start(clients.job("held", seed=2, **workdir.fault_spec("hold")))
    wait_until(workdir.faults_done)
    thread = clients.start(ahead)
    wait_until(clients.made("ahead"))
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert held.is_alive()
    assert not clients.made("held")()
    workdir.let_go()
    held.join(LIMIT_S)
    assert clients.made("held")()


def test_no_client_is_asked_for_a_plan_that_is_known_to_its_end(clients: Clients) -> None:
    """To name the runs that follow takes a client as long as its job."""
    ahead = [clients.job(f"ahead-{seed}", seed=seed) for seed in (1, 2, 3)]
    clients.request(clients.job("first", seed=0), ahead)
    assert clients.asked == 1
    for job in ahead:
        clients.request(job, [])
    assert clients.asked == 1
    # It is not in that plan, so there is another one.
    clients.request(clients.job("other", seed=4), [])
    assert clients.asked == 2


def test_a_client_that_cannot_tell_what_follows_gets_its_own_result(clients: Clients) -> None:
    """Such as where the file of another run's policy is gone."""
    for name, error in (("one", FileNotFoundError("a policy")), ("two", UserError("a policy"))):
        thread = clients.start(clients.job(name), error)
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        assert clients.made(name)()
    assert clients.asked == 2


def test_a_run_that_has_ended_is_not_computed_ahead_by_an_older_plan(
    workdir: Workdir, clients: Clients
) -> None:
    """A client looks which artifacts are missing, and others are written before it answers."""
    noted = workdir.fault_spec("write")
    made = clients.job("made", seed=1, **noted)
    clients.request(made, [])
    evictions = len(workdir.faults_done())
    assert evictions
    later = clients.job("later", seed=2)
    clients.request(clients.job("other", seed=3), [made, later])
    clients.request(later, [])
    clients.request(clients.job("last", seed=4), [])
    assert len(workdir.faults_done()) == evictions


def test_a_client_of_another_model_waits_for_those_of_runs_that_were_computed_ahead(
    workdir: Workdir, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of two models that are started together connect in any order."""
    with_patience(workdir, monkeypatch, LIMIT_S)  # where a machine is busy, a client may come late
    ahead = clients.job("ahead", seed=1)
    clients.request(clients.job("first", seed=0), [ahead])
    [worker] = workdir.workers()
    with taken(replace(CONFIG, dtype="bfloat16"), clients.job("other")) as connection:
        clients.request(ahead, [])
        assert clients.made("ahead")()
        assert clients.loaded == [worker.pid]
        # Nothing is expected any more: the worker leaves the device to the other model's.
        assert connection.recv(1) == b""
