"""A worker that serves several requests at once: their replies are decoded in one batch
(`decoding.scheduler`)."""

from __future__ import annotations

import socket
from functools import partial

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import BatchScheduler, RetryAloneError
from kvfidelity.worker.job import WorkerConfig, execute, job_from
from kvfidelity.worker.listener import Listener
from kvfidelity.worker.liveness import Liveness
from kvfidelity.worker.protocol import Message, send
from kvfidelity.worker.requests import (
    CLIENT_ERRORS,
    RequestHandler,
    event_sender,
    final_event,
    log_dropped_client,
    started_event,
)


class BatchServer:
    """Accepts clients while the batch has room, and advances their runs.

    A client that needs another worker configuration waits. When the batch has room and no further
    client is connecting, no more clients are accepted; when the active runs have finished, the
    worker exits, and the waiting clients start their own.
    """

    def __init__(self, listener: Listener, config: WorkerConfig) -> None:
        self._listener = listener
        self._handler = RequestHandler(config, reraised=(RetryAloneError,))
        self._batch_size = config.batch_size
        self._scheduler: BatchScheduler[None] | None = None
        self._clients_watched: set[Liveness] = set()
        self._waiting: list[socket.socket] = []
        self._exiting = False

    def serve(self) -> None:
        """Serve until the worker must exit; see `kvfidelity.worker` for the reasons."""
        while not (self._exiting and not self._running):
            if self._all_gone():
                return
            if not self._exiting and not (self._scheduler and self._scheduler.full):
                is_idle = not (self._running or self._waiting)
                client = self._listener.wait() if is_idle else self._listener.poll()
                if client is None and self._waiting:
                    self._exiting = True
                    continue
                if client is None and not self._running:
                    return
                if client is not None:
                    if not self._accept(client):
                        return
                    continue  # first accept all that are connecting: then they share the batch
            if self._scheduler is not None:
                self._scheduler.advance()

    @property
    def _running(self) -> int:
        return self._scheduler.running if self._scheduler else 0

    def _all_gone(self) -> bool:
        """Whether the clients of all active runs are gone."""
        gone = [liveness for liveness in self._clients_watched if liveness.gone]
        return bool(gone) and len(gone) == self._running

    def _accept(self, client: socket.socket) -> bool:
        """Start one client's request; False if the worker must exit at once."""
        try:
            match self._handler.receive(client):
                case {"do": "stop"}:
                    send(client, {"event": "stopped"})
                    return False
                case {"do": "mismatch"}:
                    self._waiting.append(client)
                    return True
                case {"do": "serve", "job": job, **options}:
                    scheduler = self._scheduler_for(client)
                    if scheduler is not None:
                        scheduler.start(
                            partial(self._serve, client, job), alone=bool(options.get("alone"))
                        )
                        return True
        except CLIENT_ERRORS as error:
            log_dropped_client(error)
        client.close()
        return True

    def _scheduler_for(self, client: socket.socket) -> BatchScheduler[None] | None:
        """The scheduler of the loaded model; None if loading failed, which the client was sent."""
        if self._scheduler is None:
            with Liveness(client, None) as liveness:
                send_event = event_sender(client, liveness)
                send_event(started_event())
                outcome, healthy = self._handler.run(lambda: self._handler.generator(send_event))
            if outcome["event"] == "error":
                self._exiting = not healthy
                send(client, final_event(outcome))
                return None
            generator = self._handler.generator(send_event)
            self._scheduler = BatchScheduler(
                generator.engine, self._batch_size, generator.free_memory
            )
        return self._scheduler

    def _serve(self, client: socket.socket, job: Message, engine: Engine) -> None:
        """One client's run, in its own thread; the scheduler lets one thread run at a time."""
        try:
            with Liveness(client, None) as liveness:
                self._clients_watched.add(liveness)
                try:
                    send_event = event_sender(client, liveness)
                    send_event(started_event())
                    outcome, healthy = self._handler.run(
                        lambda: execute(
                            self._handler.generator(send_event), job_from(job), send_event, engine
                        )
                    )
                except RetryAloneError:
                    send_event({"event": "retry_alone"})
                    raise
                finally:
                    self._clients_watched.discard(liveness)
            self._exiting |= not healthy
            send(client, final_event(outcome))
        except CLIENT_ERRORS as error:
            log_dropped_client(error)
        client.close()
