"""The job's side: sends its request to the worker, starts one if needed, forwards its events."""

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
from typing import Any, NamedTuple

from kvfidelity.errors import UserError
from kvfidelity.worker.job import Job, WorkerConfig
from kvfidelity.worker.protocol import Message, messages, peer, send
from kvfidelity.worker.socket_path import all_sockets, owner_pid, socket_path

#: At a barrier, threads spin for microseconds and then sleep. On a busy machine, spinning longer
#: made a decode step 3 to 5 times slower; on an idle one, sleeping at once makes a run 10% slower.
#: A run's tables are small: several threads only wait for each other.
THREAD_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "5000",
    "POLARS_MAX_THREADS": "1",
}
Progress = Callable[[dict[str, Any]], None]

START_TIMEOUT_S = 60.0
#: Tries to start a worker that dies before it listens.
MAX_STARTS = 3
STOP_TIMEOUT_S = 3.0
#: Workers that may die during a request before the request itself fails.
MAX_LOSSES = 3
#: Workers that may exit before they serve this request, because they served other clients.
MAX_REPLACEMENTS = 1000
MAX_LOG_BYTES = 1 << 20


class NextRuns(NamedTuple):
    """The runs that a worker may compute ahead: for each `spec`, `pool` and `dialogue` of a
    GenerateJob. more: whether others are left, for a later question."""

    runs: list[dict[str, str]]
    more: bool


Plan = Callable[[int], NextRuns]


class JobFailedError(Exception):
    """The job failed for an unknown reason; the message has the full traceback."""


class WorkerLostError(Exception):
    """The worker died in the middle of a request."""


def request(config: WorkerConfig, job: Job, progress: Progress, plan: Plan | None = None) -> None:
    """Have a job done by the worker; a worker that dies or has another config is replaced.

    Args:
        plan: returns runs that the workflow still has to make, at most as many as it is given;
            None if that is unknown.
        progress: gets the worker's events, and {"event": "log", "text"} with what the worker
            wrote to its log during the request.

    Raises:
        UserError: the request is wrong; the message is the worker's.
        JobFailedError: an unexpected error, or a worker that does not start or dies every time.
    """
    losses = 0
    for _ in range(MAX_REPLACEMENTS):
        with _connect(config) as connection:
            try:
                if _was_served(connection, config, job, progress, plan, alone=losses > 0):
                    return
            except WorkerLostError:
                losses += 1
                progress({"event": "worker_lost"})
                if losses == MAX_LOSSES:
                    break
    raise JobFailedError(
        f"the worker died {losses} times during this job, perhaps because memory ran out; "
        "its log is above; run this job's command with --no-worker to see more"
    )


def stop() -> None:
    """End this workflow's workers, also during a request."""
    for path in all_sockets():
        with contextlib.suppress(OSError), _open(path) as connection:
            connection.settimeout(STOP_TIMEOUT_S)
            send(connection, {"do": "stop"})
            try:
                next(messages(connection), None)
            except TimeoutError:
                os.kill(peer(connection).pid, signal.SIGTERM)


def _was_served(
    connection: socket.socket,
    config: WorkerConfig,
    job: Job,
    progress: Progress,
    plan: Plan | None,
    *,
    alone: bool,
) -> bool:
    """Whether the request was served; False if the worker exited before it started on it.

    Args:
        alone: serve it with no other active, so that a crash can be blamed on it.
    """
    fields: Message = {
        "do": "serve",
        "config": dataclasses.asdict(config),
        "job": dataclasses.asdict(job),
        "alone": alone,
        "plans": plan is not None,
    }
    try:
        send(connection, fields)
    except OSError:
        return False
    log_start: int | None = None
    for message in messages(connection):
        match message["event"]:
            case "mismatch":
                return False
            case "started":
                log_start = message["log_from"]
            case "which_next":
                following = _following(plan, message["limit"])
                with contextlib.suppress(OSError):
                    send(connection, {"next": following.runs, "more": following.more})
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


def _following(plan: Plan | None, limit: int) -> NextRuns:
    """The runs that follow; none where they cannot be told.

    The list only saves time, and the worker keeps this job's result until it has an answer. What is
    wrong with a run is for its own job to say.
    """
    try:
        return plan(limit) if plan else NextRuns([], more=False)
    except (OSError, UserError):
        return NextRuns([], more=False)


def _forward_log(progress: Progress, start: int | None, stop: int | None) -> None:
    """Forward the worker's log between two byte offsets; `stop` None means to its end."""
    with contextlib.suppress(OSError), _log_of(socket_path()).open("rb") as log:
        log.seek(start or 0)
        text = log.read(-1 if stop is None else stop - (start or 0)).decode(errors="replace")
        if text.strip():
            progress({"event": "log", "text": text.rstrip()})


def _connect(config: WorkerConfig) -> socket.socket:
    """A connection to the worker; a missing one is started under a lock.

    The client that starts a worker is served first, so clients of two models can alternate on one
    socket.
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
            # It may have exited because another worker was listening already.
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
        # In its own session it outlives this job, and signals to the workflow do not reach it.
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
    """The worker must run the same code as its client, installed or not."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return THREAD_ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _log_of(path: Path) -> Path:
    return path.with_suffix(".log")
