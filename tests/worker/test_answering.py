"""The thread that answers clients while another computes, and what both know of clients."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import select
import socket
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from kvfidelity.decoding.scheduler import RunTask
from kvfidelity.records.grid import GENERATED
from kvfidelity.worker.batch_server import BatchServer
from kvfidelity.worker.generator import Records
from kvfidelity.worker.job import GenerateJob
from kvfidelity.worker.listener import Listener, listen
from kvfidelity.worker.protocol import send
from kvfidelity.worker.runs import Run, RunContent
from tests.waiting import FOREVER_S, LIMIT_S, wait_until
from tests.worker.conftest import Workdir
from tests.worker.test_ahead import CONFIG, Clients, clients
from tests.worker.test_breakage import say

__all__ = ["clients"]


class Server:
    """A server in this process, whose threads' turns a test takes in the order that it wants."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._folder = folder
        self.server = BatchServer(listener, CONFIG)

    def connect(self, seed: int = 0, **config: Any) -> socket.socket:
        """Connect and send a request, as a job does."""
        files = {kind: str(self._folder / kind) for kind in GENERATED}
        job = GenerateJob(json.dumps({"seed": seed}), str(self._folder), "000", **files)
        fields = {"do": "serve", "config": dataclasses.asdict(CONFIG) | config, "plans": True}
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self._folder / "worker.sock"))
        send(client, fields | {"job": dataclasses.asdict(job)})
        return client

    def answer(self) -> None:
        """What the answering thread does each time that it wakes."""
        with self.server._lock:
            self.server._serve_clients(waits=False)

    def take_plan(self, client: socket.socket) -> None:
        """Ask for the runs that follow; there are none."""
        self.answer()
        assert json.loads(client.recv(1 << 10))["event"] == "which_next"
        send(client, {"next": [], "more": False})
        self.answer()

    def serve(self) -> None:
        """Serve, until the worker would exit."""
        thread = threading.Thread(target=self.server.serve, daemon=True)
        thread.start()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("sys.setswitchinterval", lambda seconds: None)
    monkeypatch.setattr("kvfidelity.worker.listener.FIRST_CLIENT_S", FOREVER_S)
    with listen(tmp_path / "worker.sock", FOREVER_S, 0) as listener:
        assert listener is not None
        yield Server(tmp_path, listener)


def test_clients_that_died_end_the_worker_also_when_the_answering_thread_was_first(
    at: Server,
) -> None:
    client = at.connect()
    at.answer()
    client.close()
    at.answer()
    [run] = at.server._runs
    run.end({"event": "dropped"}, healthy=True)
    at.answer()
    assert not at.server._runs
    at.serve()


def test_a_client_that_comes_after_others_died_is_served(at: Server) -> None:
    client = at.connect()
    at.answer()
    client.close()
    at.answer()
    assert at.server._deserted
    with at.connect(seed=1):
        at.answer()
        assert not at.server._deserted


@pytest.mark.parametrize("value", [["a"], {"a": 1}, None, 5, "\0"])
@pytest.mark.parametrize("key", ["spec", "pool", "dialogue"])
def test_an_odd_plan_costs_its_client_alone(at: Server, key: str, value: object) -> None:
    with at.connect() as client:
        at.answer()
        assert json.loads(client.recv(1 << 10))["event"] == "which_next"
        entry = {"spec": "{}", "pool": "/", "dialogue": "000"} | {key: value}
        send(client, {"next": [entry], "more": False})
        at.answer()
        [run] = at.server._runs
        assert run.client is not None and run.client.gone == (value != "\0")


def test_an_exiting_worker_does_not_wake_for_clients_that_it_does_not_accept(at: Server) -> None:
    with at.connect(), at.connect(dtype="bfloat16"):
        at.answer()
        assert at.server._exiting
        with at.connect(seed=1):
            assert select.select(at.server._sources(), [], [], 0)[0] == []


def test_an_error_of_an_answer_ends_the_worker(at: Server) -> None:
    with at.connect() as client:
        at.take_plan(client)
        [run] = at.server._runs
        run.records, run.job = Records({}, {}, {}), None
        run.end({"event": "done"}, healthy=True)
        at.answer()
        at.server._writer.shutdown()
        with pytest.raises(AssertionError):
            at.answer()


def test_what_was_computed_is_freed_once_its_client_is_answered(at: Server) -> None:
    with at.connect() as client:
        at.take_plan(client)
        [run] = at.server._runs
        run.task = RunTask(partial(at.server._compute, run))
        run.end({"event": "done"}, healthy=True)
        kept = weakref.ref(run)
        del run
        gc.disable()
        try:
            at.answer()
            at.server._writer.shutdown()
            assert kept() is None
        finally:
            gc.enable()


def test_a_run_that_is_kept_holds_its_tables_or_the_files_content(tmp_path: Path) -> None:
    frame = pl.DataFrame({"number": [0] * 100_000})
    kinds = ("evictions", "turns")
    records = Records(dict.fromkeys(kinds, frame), {}, {})
    run = Run(RunContent("", "", "", (0, 0)), records=records)
    assert run.nbytes == 2 * frame.estimated_size()
    kept = weakref.ref(frame)
    del frame
    run.pack()
    assert kept() is None
    content = records.files()
    assert list(content) == list(kinds)
    assert run.nbytes == sum(part.nbytes for part in content.values())
    for part in content.values():
        assert pl.read_parquet(part.tobytes()).height == 100_000


def test_an_error_of_packing_is_told_to_the_client_that_asks() -> None:
    run = Run(RunContent("", "", "", (0, 0)), records=Records({"turns": pl.DataFrame()}, {}, {}))
    run.pack()
    assert run.records is not None
    with pytest.raises(KeyError, match="evictions"):
        run.records.files()


def test_an_error_in_the_answering_thread_ends_the_worker_at_once(
    workdir: Workdir, clients: Clients
) -> None:
    clients.request(clients.job("first"), [])
    held = clients.start(clients.job("held", seed=1, **workdir.fault_spec("hold")))
    wait_until(workdir.faults_done)
    worker = workdir.worker()
    # What it writes to its log is an error from now on.
    worker.rlimit(psutil.RLIMIT_FSIZE, (0, worker.rlimit(psutil.RLIMIT_FSIZE)[1]))
    with contextlib.suppress(ConnectionError):
        say(workdir, b"[1]\n")
    wait_until(lambda: worker.pid not in [process.pid for process in workdir.workers()])
    # Its client starts another.
    workdir.let_go()
    held.join(LIMIT_S)
    assert clients.made("held")()
