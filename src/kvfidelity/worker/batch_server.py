"""A worker whose requests' replies are decoded together, in so many lanes
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
    """Takes clients in as they come while there are lanes free, and lets their runs go on.

    Those that want a worker for something else wait until nobody else is at the door while a lane
    is free, and those within are served: then this one leaves, and they start their own.
    """

    def __init__(self, listener: Listener, config: WorkerConfig) -> None:
        self._listener = listener
        self._handler = RequestHandler(config, reraised=(RetryAloneError,))
        self._batch_size = config.batch_size
        self._scheduler: BatchScheduler[None] | None = None
        self._clients_watched: set[Liveness] = set()
        self._waiting: list[socket.socket] = []
        self._leaving = False

    def serve(self) -> None:
        """Serve until nobody has come for long, or a client says stop."""
        while not (self._leaving and not self._running):
            if self._all_gone():
                return
            if not self._leaving and not (self._scheduler and self._scheduler.full):
                is_idle = not (self._running or self._waiting)
                client = self._listener.wait() if is_idle else self._listener.poll()
                if client is None and self._waiting:
                    self._leaving = True
                    continue
                if client is None and not self._running:
                    return
                if client is not None:
                    if not self._accept(client):
                        return
                    continue  # others may be there: the more decode from the start, the better
            if self._scheduler is not None:
                self._scheduler.advance()

    @property
    def _running(self) -> int:
        return self._scheduler.running if self._scheduler else 0

    def _all_gone(self) -> bool:
        """Whether nobody waits any more for what is computed here."""
        gone = [liveness for liveness in self._clients_watched if liveness.gone]
        return bool(gone) and len(gone) == self._running

    def _accept(self, client: socket.socket) -> bool:
        """Begin what one client wants; False if that is to leave at once."""
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
        """The lanes, once the model is loaded; None if it cannot be, and the client was told."""
        if self._scheduler is None:
            with Liveness(client, None) as liveness:
                send_event = event_sender(client, liveness)
                send_event(started_event())
                outcome, healthy = self._handler.run(lambda: self._handler.generator(send_event))
            if outcome["event"] == "error":
                self._leaving = not healthy
                send(client, final_event(outcome))
                return None
            generator = self._handler.generator(send_event)
            self._scheduler = BatchScheduler(
                generator.engine, self._batch_size, generator.free_memory
            )
        return self._scheduler

    def _serve(self, client: socket.socket, job: Message, engine: Engine) -> None:
        """One client's run, in a thread of its own, one of which goes on at a time."""
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
                    send_event({"event": "alone"})
                    raise
                finally:
                    self._clients_watched.discard(liveness)
            self._leaving |= not healthy
            send(client, final_event(outcome))
        except CLIENT_ERRORS as error:
            log_dropped_client(error)
        client.close()
