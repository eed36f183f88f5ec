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
from kvfidelity.worker.job import Generator, Hello
from kvfidelity.worker.protocol import Message, messages, send
from kvfidelity.worker.watch import Watch

#: How long a client may take to say what it wants, and to take in what it is told.
PATIENCE_S = 10.0


class DroppedError(Exception):
    """The client is gone: what it asked for is given up."""


#: A client that died, was stopped or talks nonsense; the next one is served.
GIVEN_UP = (OSError, ValueError, DroppedError)


class Desk:
    """One model, loaded at the first request.

    Args:
        passing: errors of a request that are not its outcome.
    """

    def __init__(self, hello: Hello, passing: tuple[type[Exception], ...] = ()) -> None:
        self._hello = hello
        self._passing: tuple[type[Exception], ...] = (DroppedError, *passing)
        self._generator: Generator | None = None

    def wish(self, client: socket.socket) -> Message:
        """What a client wants: {"do": "stop"}, {"do": "serve", "request", ...} or {"do":
        "serve another"} for one that wants a worker for something else; {} if it says nothing.

        Raises:
            OSError, ValueError: it is gone, too slow, or talks nonsense.
        """
        client.settimeout(PATIENCE_S)
        message = next(messages(client), {})
        if message.get("do") == "serve" and message.get("hello") != dataclasses.asdict(self._hello):
            return {"do": "serve another"}
        return message

    def generator(self, tell: Callable[[Message], None]) -> Generator:
        """The loaded model."""
        if self._generator is None:
            tell({"event": "loading", "model": self._hello.model_dir, "pid": os.getpid()})
            self._generator = Generator(self._hello)
        return self._generator

    def outcome(self, work: Callable[[], Any]) -> tuple[Message, bool]:
        """The last event of a request, and whether the process is fit for another.

        Raises:
            DroppedError: the client is gone; and what is `passing`.
        """
        try:
            work()
            return {"event": "done"}, True
        except UserError as error:
            return {"event": "error", "message": str(error), "user": True}, True
        except self._passing:
            raise
        except OSError as error:
            told = disk_error(error)
            if told is not None:
                return {"event": "error", "message": str(told), "user": True}, True
            return _unexpected(), False
        except Exception:  # noqa: BLE001 - whatever happens belongs in the job's log
            # Memory may be short or the device in a state that fails every later request.
            return _unexpected(), False


def teller(client: socket.socket, watch: Watch) -> Callable[[Message], None]:
    """Tells a client what happens, until it is gone."""

    def tell(event: Message) -> None:
        if watch.gone:
            raise DroppedError("it is gone")
        send(client, event)

    return tell


def started() -> Message:
    """The first event of a request."""
    return {"event": "started", "log_from": _log_size()}


def ended(outcome: Message) -> Message:
    """The last event of a request."""
    return outcome | {"log_to": _log_size()}


def give_up(error: Exception) -> None:
    """Note in the log that a client was given up."""
    print(f"a client was given up: {error!r}", file=sys.stderr, flush=True)


def _unexpected() -> Message:
    return {"event": "error", "message": traceback.format_exc(), "user": False}


def _log_size() -> int:
    """Bytes written so far to the worker's log, its standard error."""
    sys.stderr.flush()
    return os.fstat(sys.stderr.fileno()).st_size
