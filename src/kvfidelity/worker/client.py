"""The thin end: asks the worker, starts it if there is none, passes on what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.worker.job import Job, WorkerConfig
from kvfidelity.worker.protocol import messages, peer, send
from kvfidelity.worker.socket_path import all_sockets, owner_pid, socket_path

#: How threads wait at barriers: they sleep after microseconds of spinning. On a machine with
#: anything else to do, spinning on made a decode step 3 to 5 times slower; on an idle one, sleeping
#: at once makes a run a tenth slower.
THREAD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
Progress = Callable[[dict[str, Any]], None]

START_TIMEOUT_S = 60.0
#: How often a worker may die before it listens.
MAX_STARTS = 3
STOP_TIMEOUT_S = 3.0
#: How often a worker may die in the middle of a request until the request is to blame.
MAX_LOSSES = 3
#: How often a worker may leave before it comes to a request: each time it served another one.
MAX_REPLACEMENTS = 1000
MAX_LOG_BYTES = 1 << 20


class JobFailedError(Exception):
    """The job failed for no fault of the user's that we know: the message says how, in full."""


class WorkerLostError(Exception):
    """The worker died in the middle of a request."""


def request(config: WorkerConfig, job: Job, progress: Progress) -> None:
    """Have a request served; a worker that dies or does not fit is replaced.

    Args:
        progress: gets the worker's events, and {"event": "log", "text"} with what the worker's
            process wrote meanwhile.

    Raises:
        UserError: what the worker found wrong with the request.
        JobFailedError: its traceback, or a worker that does not start, or dies every time.
    """
    losses = 0
    for _ in range(MAX_REPLACEMENTS):
        with _connect(config) as connection:
            try:
                if _was_served(connection, config, job, progress, alone=losses > 0):
                    return
            except WorkerLostError:
                losses += 1
                progress({"event": "worker_lost"})
                if losses == MAX_LOSSES:
                    break
    raise JobFailedError(
        f"the worker died {losses} times in the middle of this job, for lack of memory perhaps; "
        "what it wrote is above; run the command of this job with --no-worker to see more"
    )


def stop() -> None:
    """End this workflow's workers, in the middle of a request if need be."""
    for path in all_sockets():
        with contextlib.suppress(OSError), _open(path) as connection:
            connection.settimeout(STOP_TIMEOUT_S)
            send(connection, {"do": "stop"})
            try:
                next(messages(connection), None)
            except TimeoutError:
                os.kill(peer(connection).pid, signal.SIGTERM)


def _was_served(
    connection: socket.socket, config: WorkerConfig, job: Job, progress: Progress, *, alone: bool
) -> bool:
    """Whether the request was served; False if the worker left before it came to it.

    Args:
        alone: among no others, so that what kills a worker is known.
    """
    config_fields, job_fields = dataclasses.asdict(config), dataclasses.asdict(job)
    try:
        send(
            connection, {"do": "serve", "config": config_fields, "job": job_fields, "alone": alone}
        )
    except OSError:
        return False
    log_start: int | None = None
    for message in messages(connection):
        match message["event"]:
            case "mismatch":
                return False
            case "started":
                log_start = message["log_from"]
            case "done" | "error":
                _forward_log(progress, log_start, message["log_to"])
                if message["event"] == "done":
                    return True
                raise (UserError if message["user"] else JobFailedError)(message["message"])
            case _:
                progress(message)
    if log_start is None:
        return False
    _forward_log(progress, log_start, None)
    raise WorkerLostError


def _forward_log(progress: Progress, start: int | None, stop: int | None) -> None:
    """What the worker's process wrote between two sizes of its log; None: to its end."""
    with contextlib.suppress(OSError), _log_of(socket_path()).open("rb") as log:
        log.seek(start or 0)
        text = log.read(-1 if stop is None else stop - (start or 0)).decode(errors="replace")
        if text.strip():
            progress({"event": "log", "text": text.rstrip()})


def _connect(config: WorkerConfig) -> socket.socket:
    """A connection to the worker, which is started under a lock if nobody listens.

    Who starts a worker is the first whom it serves: so two models in turn get on with one place.
    """
    path = socket_path()
    with contextlib.suppress(OSError):
        return _open(path)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return _open(path)
        for _ in range(MAX_STARTS):
            process = _start(path, config)
            deadline = time.monotonic() + START_TIMEOUT_S
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError):
                    return _open(path)
                time.sleep(0.02)
            process.kill()
            # It may have left because another one was there already.
            with contextlib.suppress(OSError):
                return _open(path)
    tail = _log_of(path).read_text(encoding="utf-8", errors="replace")[-2000:]
    raise JobFailedError(f"the worker did not start:\n{tail}")


def _open(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _start(path: Path, config: WorkerConfig) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kvfidelity.worker.server", str(path)]
    command += [json.dumps(dataclasses.asdict(config)), str(_idle_s()), str(owner_pid() or 0)]
    file = _log_of(path)
    if file.exists() and file.stat().st_size > MAX_LOG_BYTES:
        file.unlink()
    with file.open("ab") as log:
        # A session of its own: it outlives this job, and signals to the workflow pass it by.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(),
        )


def _idle_s() -> float:
    text = os.environ.get("KVFIDELITY_WORKER_IDLE_S", "60")
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise UserError(f"KVFIDELITY_WORKER_IDLE_S is {text!r}; give seconds above 0, such as 60")


def _environment() -> dict[str, str]:
    """The worker runs the code that its client runs, installed or not."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return THREAD_ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _log_of(path: Path) -> Path:
    return path.with_suffix(".log")
