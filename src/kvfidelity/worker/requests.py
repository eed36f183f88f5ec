"""What a client asks for and what it is told: the same whether one or several are served."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

from kvfidelity.cli import disk_error
from kvfidelity.errors import UserError
from kvfidelity.worker.job import Generator, WorkerConfig
from kvfidelity.worker.liveness import Liveness
from kvfidelity.worker.protocol import Message, messages, send

#: How long a client may take to say what it wants, and to take in what it is told.
CLIENT_TIMEOUT_S = 10.0


class ClientGoneError(Exception):
    """The client is gone: what it asked for is given up."""


#: A client that died, was stopped or talks nonsense; the next one is served.
CLIENT_ERRORS = (OSError, ValueError, ClientGoneError)


class RequestHandler:
    """One model, loaded at the first request.

    Args:
        passing: errors of a request that are not its outcome.
    """

    def __init__(self, config: WorkerConfig, reraised: tuple[type[Exception], ...] = ()) -> None:
        self._config = config
        self._reraised: tuple[type[Exception], ...] = (ClientGoneError, *reraised)
        self._generator: Generator | None = None

    def receive(self, client: socket.socket) -> Message:
        """What a client wants: {"do": "stop"}, {"do": "serve", "request", ...} or {"do":
        "serve another"} for one that wants a worker for something else; {} if it says nothing.

        Raises:
            OSError, ValueError: it is gone, too slow, or talks nonsense.
        """
        client.settimeout(CLIENT_TIMEOUT_S)
        message = next(messages(client), {})
        if message.get("do") == "serve" and message.get("config") != dataclasses.asdict(
            self._config
        ):
            return {"do": "mismatch"}
        return message

    def generator(self, send_event: Callable[[Message], None]) -> Generator:
        """The loaded model."""
        if self._generator is None:
            send_event({"event": "loading", "model": self._config.model_dir, "pid": os.getpid()})
            self._generator = Generator(self._config)
        return self._generator

    def run(self, work: Callable[[], Any]) -> tuple[Message, bool]:
        """The last event of a request, and whether the process is fit for another.

        Raises:
            ClientGoneError: the client is gone; and what is `passing`.
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
        except Exception:  # noqa: BLE001 - whatever happens belongs in the job's log
            # Memory may be short or the device in a state that fails every later request.
            return _unexpected_error(), False


def event_sender(client: socket.socket, liveness: Liveness) -> Callable[[Message], None]:
    """Tells a client what happens, until it is gone."""

    def send_event(event: Message) -> None:
        if liveness.gone:
            raise ClientGoneError("it is gone")
        send(client, event)

    return send_event


def started_event() -> Message:
    """The first event of a request."""
    return {"event": "started", "log_from": _log_size()}


def final_event(outcome: Message) -> Message:
    """The last event of a request."""
    return outcome | {"log_to": _log_size()}


def log_dropped_client(error: Exception) -> None:
    """Note in the log that a client was given up."""
    print(f"a client was given up: {error!r}", file=sys.stderr, flush=True)


def _unexpected_error() -> Message:
    return {"event": "error", "message": traceback.format_exc(), "user": False}


def _log_size() -> int:
    """Bytes written so far to the worker's log, its standard error."""
    sys.stderr.flush()
    return os.fstat(sys.stderr.fileno()).st_size
