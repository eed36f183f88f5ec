"""The worker: loads the model, serves one request at a time, leaves when idle.

python -m kvfidelity.worker.server SOCKET '<hello as JSON>' IDLE_SECONDS OWNER_PID
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import fcntl
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import psutil

from kvfidelity.cli import disk_error
from kvfidelity.errors import UserError
from kvfidelity.worker.job import Generator, Hello, Wanted, carry_out, wanted
from kvfidelity.worker.protocol import Message, messages, peer, send
from kvfidelity.worker.watch import Watch

#: How long a client may take to say what it wants, and to take in what it is told.
PATIENCE_S = 10.0
#: How long a worker waits for its first client, and for another worker to leave its place.
FIRST_S = 10.0
LEAVING_S = 30.0
#: How often an idle worker looks whether its owner is there.
LOOK_S = 1.0


class DroppedError(Exception):
    """The client is gone: what it asked for is given up."""


def serve(path: Path, hello: Hello, idle_s: float, owner: int = 0) -> None:
    """Listen on `path` until nothing was asked for `idle_s` seconds, or a client says stop.

    Args:
        owner: a process that the worker does not outlive; see `place.owner`. 0 is none.
    """
    worker = Worker(hello)
    with (
        path.with_suffix(".worker").open("w") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        if not _took(place, path):
            return
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        # Whoever started this worker is at the door; if not, it was killed meanwhile.
        patience = min(idle_s, FIRST_S)
        try:
            while connection := _next_client(listener, patience, owner):
                patience = idle_s
                with connection:
                    if peer(connection).uid == os.getuid() and not worker.answer(connection):
                        return
        finally:
            path.unlink(missing_ok=True)


def _next_client(listener: socket.socket, patience_s: float, owner: int) -> socket.socket | None:
    """The next connection; None once nobody came for so long, or the owner is gone."""
    deadline = time.monotonic() + patience_s
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(min(left, LOOK_S) if owner else left)
        with contextlib.suppress(TimeoutError):
            return listener.accept()[0]
        if owner and not psutil.pid_exists(owner):
            return None
    return None


class Worker:
    """One model, loaded at the first request."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._generator: Generator | None = None

    def answer(self, connection: socket.socket) -> bool:
        """Do what one client wants; whether the worker goes on."""
        connection.settimeout(PATIENCE_S)
        try:
            message = next(messages(connection), {})
            match message.get("do"):
                case "stop":
                    send(connection, {"event": "stopped"})
                    return False
                case "serve" if message.get("hello") != dataclasses.asdict(self._hello):
                    send(connection, {"event": "mismatch"})
                    return False
                case "serve":
                    return self._serve(connection, message["request"])
        except (OSError, ValueError, DroppedError) as error:
            # A client that died, was stopped or talks nonsense; the next one is served.
            print(f"a client was given up: {error!r}", file=sys.stderr, flush=True)
        return True

    def _serve(self, connection: socket.socket, request: dict[str, Any]) -> bool:
        with Watch(connection) as watch:

            def tell(event: Message) -> None:
                if watch.gone:
                    raise DroppedError("it is gone")
                send(connection, event)

            tell({"event": "started", "log_from": _log_size()})
            outcome, sound = self._outcome(wanted(request), tell)
        send(connection, outcome | {"log_to": _log_size()})
        return sound

    def _outcome(self, request: Wanted, tell: Any) -> tuple[Message, bool]:
        """The last event of a request, and whether the process is fit for another."""
        try:
            if self._generator is None:
                tell({"event": "loading", "model": self._hello.model_dir, "pid": os.getpid()})
                self._generator = Generator(self._hello)
            carry_out(self._generator, request, tell)
            return {"event": "done"}, True
        except UserError as error:
            return {"event": "error", "message": str(error), "user": True}, True
        except OSError as error:
            told = disk_error(error)
            if told is not None:
                return {"event": "error", "message": str(told), "user": True}, True
            return _unexpected(), False
        except DroppedError:
            raise
        except Exception:  # noqa: BLE001 - whatever happens belongs in the job's log
            # Memory may be short or the device in a state that fails every later request.
            return _unexpected(), False


def _unexpected() -> Message:
    return {"event": "error", "message": traceback.format_exc(), "user": False}


def _log_size() -> int:
    """Bytes written so far to the worker's log, its standard error."""
    sys.stderr.flush()
    return os.fstat(sys.stderr.fileno()).st_size


def _took(place: IO[str], path: Path) -> bool:
    """Lock the file that one worker at a time holds as long as it lives; False if one stays there.

    Two may start at once if a client is killed between starting one and reaching it; and the last
    one may still be on its way out.
    """
    deadline = time.monotonic() + LEAVING_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            if not door.connect_ex(str(path)):
                return False
        time.sleep(0.02)
    print(f"another worker holds {path}, hears nobody and does not leave", file=sys.stderr)
    return False


if __name__ == "__main__":
    # A crash in native code leaves its stack in the log, which goes to the job that caused it;
    # SIGUSR1 makes a worker that seems to hang write down where it is.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    place, about, idle, owner = sys.argv[1:]
    serve(Path(place), Hello.of(json.loads(about)), float(idle), int(owner))
    # Taking torch apart would hold the device's memory for a second that the next worker waits.
    os._exit(0)
