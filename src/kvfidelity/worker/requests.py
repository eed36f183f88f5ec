"""Receiving a request and answering it: the same for `server` and `batch_server`."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from kvfidelity.cli import disk_error
from kvfidelity.errors import UserError
from kvfidelity.worker.generator import Generator
from kvfidelity.worker.job import WorkerConfig
from kvfidelity.worker.liveness import Liveness
from kvfidelity.worker.protocol import Message, first_message, send

#: Seconds for a client to send its request, and to read an event.
CLIENT_TIMEOUT_S = 10.0


class ClientGoneError(Exception):
    """The client is gone, so its request is given up."""


#: Errors of a client that died, was stopped or sent garbage; the worker serves the next one.
CLIENT_ERRORS = (OSError, ValueError, ClientGoneError)


@contextlib.contextmanager
def kept_for_good() -> Iterator[None]:
    """While what is imported and loaded stays as long as the process.

    Looking for garbage takes a tenth of the time of loading a model and a sixth of that of
    importing PyTorch and transformers, and looking at them again a fifteenth of computing.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


class RequestHandler:
    """One model, loaded at the first request.

    Args:
        reraised: errors that are not a request's outcome; `run` raises them.
        previous: see Generator.
    """

    def __init__(
        self,
        config: WorkerConfig,
        reraised: tuple[type[Exception], ...] = (),
        previous: Generator | None = None,
    ) -> None:
        self._config = config
        self._previous = previous
        self._reraised: tuple[type[Exception], ...] = (ClientGoneError, *reraised)
        self._generator: Generator | None = None

    def receive(self, client: socket.socket) -> Message:
        """A client's request.

        Returns:
            {"do": "stop"}, {"do": "serve", "job", ...}, {"do": "mismatch"} if the client needs a
            worker with another configuration (with its "request"), or {} if it sent nothing.

        Raises:
            OSError, ValueError: it is gone, too slow, or sent garbage.
        """
        message = first_message(client, CLIENT_TIMEOUT_S)
        client.settimeout(CLIENT_TIMEOUT_S)
        return self.checked(message)

    def checked(self, message: Message) -> Message:
        """A request as `receive` returns it."""
        if message.get("do") == "serve" and message.get("config") != dataclasses.asdict(
            self._config
        ):
            return {"do": "mismatch", "request": message}
        return message

    def generator(self, send_event: Callable[[Message], None]) -> Generator:
        """The generator; its model is loaded at the first call."""
        if self._generator is None:
            send_event({"event": "loading", "model": self._config.model_dir, "pid": os.getpid()})
            with kept_for_good():
                self._generator = Generator(self._config, self._previous)
            self._previous = None
        return self._generator

    @property
    def loaded(self) -> Generator | None:
        """The generator, if its model is loaded."""
        return self._generator

    def run(self, work: Callable[[], Any]) -> tuple[Message, bool]:
        """Do the work; the request's last event, and whether the process can serve another.

        Raises:
            ClientGoneError: the client is gone. Errors in `reraised` are raised as well.
        """
        try:
            work()
            return {"event": "done"}, True
        except UserError as error:
            return {"event": "error", "message": str(error), "user": True}, True
        except self._reraised:
            raise
        except OSError as error:
            disk_problem = disk_error(error)
            if disk_problem is not None:
                return {"event": "error", "message": str(disk_problem), "user": True}, True
            return _unexpected_error(), False
        except BaseException:  # noqa: BLE001 - it belongs in the job's log
            # Memory may be short, or the device broken for every later request. A policy's call of
            # `sys.exit` is such an error too: in a thread it would end that thread alone.
            return _unexpected_error(), False


def event_sender(client: socket.socket, liveness: Liveness) -> Callable[[Message], None]:
    """A function that sends events to a client; it raises ClientGoneError when that is gone."""

    def send_event(event: Message) -> None:
        if liveness.gone:
            raise ClientGoneError("the client is gone")
        send(client, event)

    return send_event


def started_event() -> Message:
    """The first event of a request."""
    return {"event": "started", "log_from": _log_size()}


def final_event(outcome: Message) -> Message:
    """The last event of a request."""
    return outcome | {"log_to": _log_size()}


def log_dropped_client(error: Exception) -> None:
    """Write to the log that a client's request was given up."""
    print(f"a client was given up: {error!r}", file=sys.stderr, flush=True)


def _unexpected_error() -> Message:
    return {"event": "error", "message": traceback.format_exc(), "user": False}


def _log_size() -> int:
    """Bytes written so far to the worker's log, its standard error."""
    sys.stderr.flush()
    return os.fstat(sys.stderr.fileno()).st_size
