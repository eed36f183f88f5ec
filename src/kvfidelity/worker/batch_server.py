"""A worker that computes several runs at once (`decoding.scheduler`), and runs that follow.

Snakemake may ask for one run at a time (`--cores 1`). So the worker asks a client which runs the
workflow still has to make, and computes them together with the requested one. When a job asks for
such a run, its artifact is written from what was computed. What no job asks for is never written.

Clients that come one at a time would wait longer than their runs take, if they were answered
between the steps of others. So while runs are computed, a second thread takes requests, and others
make files' content and write it; see `kvfidelity.worker`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import BatchScheduler, RestartError
from kvfidelity.worker.ahead import AheadPlan
from kvfidelity.worker.generator import Generator, execute, only_weights_differ
from kvfidelity.worker.job import GenerateJob, WorkerConfig, job_from
from kvfidelity.worker.listener import Listener
from kvfidelity.worker.protocol import MAX_MESSAGE_BYTES, Message, send
from kvfidelity.worker.requests import (
    CLIENT_ERRORS,
    ClientGoneError,
    RequestHandler,
    log_dropped_client,
    started_event,
)
from kvfidelity.worker.runs import Client, Run, RunContent

#: Seconds without a client after which nothing further is computed ahead.
AHEAD_IDLE_S = 60.0
#: With results that no job has asked for, a worker stays idle so many times as long: all jobs that
#: run at once may wait for the worker of another GPU, or for a judge.
KEPT_TIMES = 10.0
#: Seconds that clients of another configuration wait for those of runs that were computed ahead.
LATE_CLIENT_S = 10.0
POLL_S = 0.05
#: Seconds that Python lets one thread compute before another that waits gets its turn; 5 ms is
#: Python's default, and answering a client takes a dozen turns.
SWITCH_S = 0.0005


class BatchServer:
    """Accepts clients, starts runs while the batch has room, and advances them.

    A client that needs another worker configuration waits. When no further client is connecting,
    nor expected for what was computed ahead, no more clients are accepted; when the requested runs
    have ended, so does the server. If the waiting client needs the same model with other weights,
    such as another training of one base, another server follows (`follower`); else the worker
    exits, and the waiting clients start their own.

    `_lock` is held by the thread that reads or changes what is known of clients and runs; never
    while runs are computed or artifacts written.
    """

    def __init__(
        self, listener: Listener, config: WorkerConfig, previous: Generator | None = None
    ) -> None:
        self._listener = listener
        self.config = config
        self._handler = RequestHandler(config, (RestartError,), previous)
        self._batch_size = config.batch_size
        self._scheduler: BatchScheduler[None] | None = None
        self._runs: list[Run] = []
        self._plan = AheadPlan(config.batch_size)
        #: Clients that need another configuration, and their requests.
        self._mismatched: list[tuple[socket.socket, Message]] = []
        self._last_client_s = time.monotonic()
        self._exiting = self._stopped = self._deserted = self._broken = False
        self._lock = threading.Lock()
        self._advancing = threading.Event()
        self._ended = False
        # Written to when a run has ended, so that its client is answered at once.
        self._wakes, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        self._writer = ThreadPoolExecutor(1, "artifacts")
        self._packer = ThreadPoolExecutor(1, "contents")
        self._writing: set[Future[bool]] = set()

    def serve(self) -> None:
        """Serve until the worker must exit; see `kvfidelity.worker` for the reasons."""
        sys.setswitchinterval(SWITCH_S)
        answering = threading.Thread(target=self._answer_while_computing, daemon=True)
        answering.start()
        try:
            while self._continues():
                self._start_runs()
                if self._scheduler is not None and self._scheduler.running:
                    self._advancing.set()
                    self._scheduler.advance()
                    self._advancing.clear()
        finally:
            self._ended = True
            self._advancing.set()
            self._wake()
            answering.join()
            self._packer.shutdown(cancel_futures=True)
            self._writer.shutdown()

    def follower(self) -> BatchServer | None:
        """When this server has ended: one for the clients that wait, where the first of them needs
        other weights in the same model. Else None: the process ends, and they start another."""
        generator = self._handler.loaded
        ended = self._stopped or self._deserted or self._broken
        if ended or generator is None or not self._mismatched:
            return None
        try:
            config = WorkerConfig.of(self._mismatched[0][1]["config"])
        except (KeyError, TypeError):  # of other code
            return None
        if not only_weights_differ(self.config, config):
            return None
        if self._scheduler is not None:
            self._scheduler.abandon()  # runs ahead of their jobs may be on their way
        server = BatchServer(self._listener, config, generator)
        for connection, request in self._mismatched:
            server._take(connection, server._handler.checked(request))
        return server

    def _continues(self) -> bool:
        """Serve clients, waiting for one with nothing to do; False if the worker must exit."""
        with self._lock:
            for run in self._runs:
                if run.task is not None and run.task.error is not None:
                    raise run.task.error  # it has no outcome, so its client would wait forever
            self._serve_clients(waits=True)
            over = self._exiting and not self._requested()
            return not (self._stopped or self._deserted or over)

    def _answer_while_computing(self) -> None:
        """In a thread of its own: serve clients until the worker exits.

        A stop ends the worker at once: what the other thread computes could take minutes. So does
        an error: no client would be answered until then.
        """
        status = 1
        try:
            if not self._is_stopped_while_computing():
                return
            status = 0
        except BaseException:  # noqa: BLE001 - as loud as one in the main thread
            with contextlib.suppress(OSError):
                traceback.print_exc()
        try:
            self._writer.shutdown()
        finally:
            os._exit(status)

    def _is_stopped_while_computing(self) -> bool:
        """Serve clients while runs are computed; True at a stop, False when the other thread
        ends."""
        while True:
            self._advancing.wait()
            if self._ended:
                return False
            with self._lock:
                sources = self._sources()
            # A connection may be closed meanwhile.
            with contextlib.suppress(OSError, ValueError):
                select.select(sources, [], [], POLL_S)
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(1 << 10)
            with self._lock:
                if self._serve_clients(waits=False):
                    return True

    def _sources(self) -> list[Any]:
        """What is readable when there is something to do for clients."""
        # A worker that is exiting accepts no client: one that connects would be seen all the time.
        connecting = [] if self._exiting else [self._listener]
        return [self._woken, *connecting, *self._connections()]

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakes.send(b"\0")

    def _serve_clients(self, *, waits: bool) -> bool:
        """Take requests, note which clients have died, and answer those whose runs have ended.

        Args:
            waits: wait for a client if there is nothing to do.

        Returns:
            Whether the worker must exit at once; False if the other thread knows that already.
        """
        if self._stopped:
            return False
        if not self._exiting:
            self._stopped = not self._accept_all(waits=waits)
        self._read_clients(waits=waits)
        self._deliver()
        return self._stopped

    def _requested(self) -> list[Run]:
        return [run for run in self._runs if run.requested]

    def _note_desertion(self) -> None:
        """Note whether clients died in their requests, and no other waits."""
        if self._requested():
            self._deserted = False
        elif any(run.client is not None for run in self._runs):
            self._deserted = True

    def _accept_all(self, *, waits: bool) -> bool:
        """Accept all clients that are connecting; False if the worker must exit at once.

        With nothing to do it waits for a client, until the listener's time is over; longer with
        results that no job has asked for.
        """
        while True:
            busy = self._requested() or self._computing() or self._mismatched or self._writing
            idle = waits and not busy
            kept = KEPT_TIMES if self._ahead() else 1.0
            client = self._listener.wait(kept) if idle else self._listener.poll()
            if client is None:
                self._exiting |= bool(self._mismatched) and not self._expects_clients()
                return not idle
            self._last_client_s = time.monotonic()
            if not self._accept(client):
                return False

    def _expects_clients(self) -> bool:
        """Whether jobs of runs that were computed ahead will come: the workflow starts them before
        those of another model, but processes that start together connect in any order."""
        ahead = bool(self._ahead() or self._plan)
        return ahead and time.monotonic() - self._last_client_s < LATE_CLIENT_S

    def _computing(self) -> bool:
        return bool(self._scheduler and self._scheduler.running)

    def _accept(self, connection: socket.socket) -> bool:
        """Receive one client's request; False if the worker must exit at once."""
        try:
            return self._take(connection, self._handler.receive(connection))
        except CLIENT_ERRORS as error:
            log_dropped_client(error)
        connection.close()
        return True

    def _take(self, connection: socket.socket, message: Message) -> bool:
        """Take one client's request, as the handler has it; False if the worker must exit."""
        try:
            match message:
                case {"do": "stop"}:
                    send(connection, {"event": "stopped"})
                    return False
                case {"do": "mismatch", "request": request}:
                    self._mismatched.append((connection, request))
                    return True
                case {"do": "serve", "job": job, **options}:
                    client = Client(connection, plans=bool(options.get("plans")))
                    self._request(client, job, alone=bool(options.get("alone")))
                    return True
        except CLIENT_ERRORS as error:
            log_dropped_client(error)
        connection.close()
        return True

    def _request(self, client: Client, fields: Message, *, alone: bool) -> None:
        job = job_from(fields)
        content = None
        if isinstance(job, GenerateJob):
            try:
                content = RunContent.of(job.spec, job.pool, job.dialogue)
            except OSError:
                content = None  # the run itself says what is missing
            known = next((run for run in self._runs if content and run.content == content), None)
            if known is not None and known.client is None and not alone:
                known.attach(job, client)
                self._plan.ask(client, self._ahead())
                return
        self._plan.reopen()
        if alone:  # a crash is blamed on it: then nothing else is computed
            self._plan.stop()
        self._runs.append(Run(content, job, client, alone, ended=self._wake))
        self._plan.ask(client, self._ahead())

    def _ahead(self) -> int:
        return sum(run.client is None for run in self._runs)

    def _connections(self) -> dict[socket.socket, Client]:
        """Those of the clients that wait."""
        return {run.client.connection: run.client for run in self._requested() if run.client}

    def _read_clients(self, *, waits: bool) -> None:
        """Take what clients have sent; an end of file means that one has died."""
        clients, patience = self._connections(), self._patience() if waits else 0.0
        readable = select.select(list(clients), [], [], patience)[0] if clients else []
        if self._writing and not clients:
            wait(self._writing, patience, FIRST_COMPLETED)
        elif self._mismatched and not clients and not self._exiting:
            select.select([self._listener], [], [], patience)
        for connection in readable:
            client = clients[connection]
            try:
                data = connection.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                client.gone = True
            client.inbox += data
            if len(client.inbox) > MAX_MESSAGE_BYTES:
                log_dropped_client(ValueError("its message is too long"))
                client.gone = True
            elif client.inbox.endswith(b"\n"):
                self._plan.take(client, self._runs)
        if self._plan.asked is not None and self._plan.asked.gone:
            self._plan.asked = None

    def _patience(self) -> float:
        """Seconds to wait for clients: none while there is something to compute."""
        return 0.0 if self._computing() or self._startable() else POLL_S

    def _next_to_start(self) -> Run | None:
        with self._lock:
            return self._startable()

    def _startable(self) -> Run | None:
        """The next run to start: a requested one first."""
        waiting = [run for run in self._runs if run.task is None and run.outcome is None]
        return min(waiting, key=lambda run: not run.requested, default=None)

    def _start_runs(self) -> None:
        with self._lock:
            self._plan_ahead()
        while run := self._next_to_start():
            if self._scheduler is None and not self._load(run):
                return
            assert self._scheduler is not None
            if self._scheduler.full:
                return
            run.task = self._scheduler.start(partial(self._compute, run), alone=run.alone)

    def _plan_ahead(self) -> None:
        """Turn planned runs into runs while there is room for their results."""
        recent = time.monotonic() - self._last_client_s < AHEAD_IDLE_S
        if self._exiting or not recent:
            self._plan.postpone()
        for content in self._plan.due(self._runs):
            self._runs.append(Run(content, ended=self._wake))

    def _load(self, run: Run) -> bool:
        """Load the model; if that fails, all requests get the error."""
        try:
            run.send(started_event())
            outcome, healthy = self._handler.run(lambda: self._handler.generator(run.send))
        except ClientGoneError as error:
            log_dropped_client(error)
            run.end({"event": "dropped"}, healthy=True)
            return False
        if outcome["event"] == "error":
            with self._lock:
                for waiting in self._runs:
                    waiting.end(outcome, healthy=healthy)
            return False
        generator = self._handler.generator(run.send)
        self._scheduler = BatchScheduler(generator.engine, self._batch_size, generator.free_memory)
        return True

    def _compute(self, run: Run, engine: Engine) -> None:
        """One run, on its own stack; the scheduler lets one of them run at a time."""
        try:
            run.send(started_event())
            outcome, healthy = self._handler.run(lambda: self._work(run, engine))
        except RestartError:
            with contextlib.suppress(ClientGoneError):
                run.send({"event": "restarted"})
            raise
        except ClientGoneError as error:
            log_dropped_client(error)
            outcome, healthy = {"event": "dropped"}, True
        run.end(outcome, healthy=healthy)

    def _work(self, run: Run, engine: Engine) -> None:
        generator = self._handler.generator(run.send)
        if run.content is None:
            assert run.job is not None
            execute(generator, run.job, run.send, engine)
            return
        spec, pool, dialogue, _ = run.content
        run.records = generator.compute(spec, pool, dialogue, run.send, engine)

    def _deliver(self) -> None:
        """Answer the clients whose runs have ended; drop runs that failed ahead of a request."""
        for future in [future for future in self._writing if future.done()]:
            self._writing.remove(future)
            self._note_health(future.result())
        ended = [run for run in self._runs if run.outcome is not None]
        # Of those that have ended, too: they are not known any more when the other thread asks.
        self._note_desertion()
        for run in ended:
            if run.client is None and run.records is not None:
                self._pack(run)
                continue  # kept for its job
            if run.client is not None and run.client is self._plan.asked and not run.client.gone:
                continue  # its plan is on its way, and comes before the result is of use
            self._runs.remove(run)
            run.task = None  # it refers to the run: what was computed would stay in memory
            self._note_health(run.healthy)
            if run.content is not None:
                self._plan.note_ended(run.content)
            if run.client is not None:
                self._writing.add(self._writer.submit(self._answer, run, run.client))

    def _note_health(self, healthy: bool) -> None:
        """A worker in which something unexpected happened exits."""
        self._broken |= not healthy
        self._exiting |= self._broken

    def _pack(self, run: Run) -> None:
        """Have the files' content made ahead, so that a job that asks only waits for writing."""
        if not run.packing:
            run.packing = True
            self._packer.submit(run.pack)

    def _answer(self, run: Run, client: Client) -> bool:
        """In the writer's thread: write what was computed, and tell the client how it ended.

        Returns:
            Whether the worker can go on.
        """
        outcome: Any = run.outcome
        healthy = True
        if run.records is not None and outcome["event"] == "done" and not client.gone:
            records, job = run.records, run.job
            assert isinstance(job, GenerateJob)
            generator = self._handler.generator(run.send)
            written, healthy = self._handler.run(lambda: generator.write(records, job))
            outcome = outcome | written
        if not client.gone:
            client.send(outcome)
        client.connection.close()
        return healthy
