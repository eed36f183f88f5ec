"""The thin end: asks the worker, starts it if there is none, passes on what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.worker.job import Hello, Request
from kvfidelity.worker.place import socket_path
from kvfidelity.worker.protocol import messages, send

IDLE_S = float(os.environ.get("KVFIDELITY_WORKER_IDLE_S", "60"))
START_S = 60.0
ATTEMPTS = 3


class WorkerLostError(Exception):
    """The worker went away in the middle of a request."""


def ask(hello: Hello, request: Request, progress: Callable[[dict[str, Any]], None]) -> None:
    """Have a request served; a worker that dies or does not fit is replaced.

    Raises:
        UserError: what the worker found wrong with the request.
        RuntimeError: its traceback, or a worker that dies every time.
    """
    for _ in range(ATTEMPTS):
        with _connect(hello) as connection:
            try:
                if _served(connection, hello, request, progress):
                    return
            except (WorkerLostError, OSError):
                progress({"event": "worker_lost"})
    raise RuntimeError(
        f"the worker died or was replaced {ATTEMPTS} times in a row; its output is in "
        f"{_log_of(socket_path())}; run once with --no-worker to see the cause"
    )


def stop() -> None:
    """End this workflow's worker if there is one."""
    with contextlib.suppress(OSError), _open(socket_path()) as connection:
        send(connection, {"do": "stop"})
        next(messages(connection), None)


def _served(
    connection: socket.socket,
    hello: Hello,
    request: Request,
    progress: Callable[[dict[str, Any]], None],
) -> bool:
    """Whether the request was served; False if the worker is for something else and left."""
    about, wanted = dataclasses.asdict(hello), dataclasses.asdict(request)
    send(connection, {"do": "serve", "hello": about, "request": wanted})
    for message in messages(connection):
        match message["event"]:
            case "done":
                return True
            case "mismatch":
                return False
            case "error":
                raise (UserError if message["user"] else RuntimeError)(message["message"])
            case _:
                progress(message)
    raise WorkerLostError


def _connect(hello: Hello) -> socket.socket:
    """A connection to the worker, which is started under a lock if nobody listens."""
    path = socket_path()
    with contextlib.suppress(OSError):
        return _open(path)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return _open(path)
        process = _start(path, hello)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                return _open(path)
            time.sleep(0.02)
    tail = _log_of(path).read_text(encoding="utf-8")[-2000:]
    raise RuntimeError(f"the worker did not start:\n{tail}")


def _open(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _start(path: Path, hello: Hello) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kvfidelity.worker.server", str(path)]
    command += [json.dumps(dataclasses.asdict(hello)), str(IDLE_S)]
    with _log_of(path).open("wb") as log:
        # A session of its own: it outlives this job, and signals to the workflow pass it by.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # The worker runs the code that its client runs, installed or not.
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )


def _log_of(path: Path) -> Path:
    return path.with_suffix(".log")
