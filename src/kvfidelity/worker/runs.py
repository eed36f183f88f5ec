"""A run in a worker that computes several at once: its client, its events, its result."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kvfidelity.decoding.scheduler import RunTask
from kvfidelity.worker.generator import Records
from kvfidelity.worker.job import GenerateJob, Job
from kvfidelity.worker.protocol import Message, send
from kvfidelity.worker.requests import ClientGoneError, final_event


class RunContent(NamedTuple):
    """What a run's result depends on, besides the worker's configuration.

    pool_state: time in ns and size of the pool's file.
    """

    spec: str
    pool: str
    dialogue: str
    pool_state: tuple[int, int]

    @classmethod
    def of(cls, spec: str, pool: str, dialogue: str) -> RunContent:
        """The content as of now.

        Raises:
            OSError: there is no such pool.
        """
        status = Path(pool).stat()
        return cls(spec, pool, dialogue, (status.st_mtime_ns, status.st_size))


@dataclass(eq=False)
class Client:
    """A connection whose other end waits for a job. gone: it has died. inbox: bytes of an
    incomplete message. plans: it can name the runs that follow."""

    connection: socket.socket
    plans: bool = False
    gone: bool = False
    inbox: bytes = b""

    def send(self, message: Message) -> None:
        """Send a message; a client that does not take it is gone."""
        try:
            send(self.connection, message)
        except OSError:
            self.gone = True


@dataclass(eq=False)
class Run:
    """A run that was requested, or that is computed ahead of its request.

    content: None for a job that is not a run of a dialogue, which is never computed ahead.
    job, client: None while nobody has asked for it. events: sent so far, or to be sent.
    outcome: its final event, once it has ended; healthy: whether the worker can go on.
    records: what was computed, not written yet; packing: whether their files' content is being made
    or has been. ended: called, where it is computed, when it has.

    It is computed in one thread and its client is answered in another.
    """

    content: RunContent | None
    job: Job | None = None
    client: Client | None = None
    alone: bool = False
    task: RunTask[None] | None = None
    events: list[Message] = field(default_factory=list)
    outcome: Message | None = None
    healthy: bool = True
    records: Records | None = None
    packing: bool = False
    ended: Callable[[], None] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def requested(self) -> bool:
        """Whether a client waits for it."""
        return self.client is not None and not self.client.gone

    @property
    def nbytes(self) -> int:
        """Bytes of what was computed and is kept."""
        return self.records.nbytes if self.records else 0

    def pack(self) -> None:
        """Make the content of the files, for whoever asks for them. Whoever asks gets its error."""
        if self.records is not None:
            with contextlib.suppress(Exception):
                self.records.files()

    def attach(self, job: GenerateJob, client: Client) -> None:
        """Let a client wait for it; it gets the events so far."""
        with self._lock:
            self.job, self.client = job, client
            for event in self.events:
                client.send(event)

    def send(self, event: Message) -> None:
        """Send an event to the client, or keep it for one.

        Raises:
            ClientGoneError: its client is gone.
        """
        with self._lock:
            self.events.append(event)
            if self.client is not None:
                self.client.send(event)
        if self.client is not None and self.client.gone:
            raise ClientGoneError("the client is gone")

    def end(self, outcome: Message, *, healthy: bool) -> None:
        """Note how it ended."""
        # The outcome last: with it the other thread takes the run as ended.
        self.healthy = healthy
        self.outcome = final_event(outcome)
        self.ended()
