"""Which configuration the worker of a socket serves, so that jobs need not ask it."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
from pathlib import Path

from kvfidelity.atomic_files import write_text
from kvfidelity.worker.job import WorkerConfig

#: Of the lock that a worker holds until its process ends (`listener.listen`).
LOCK_SUFFIX = ".worker"


def note_serving(socket: Path, config: WorkerConfig) -> None:
    """Note what the worker of a socket serves from now on."""
    write_text(_note(socket), _digest(config))


def is_serving(socket: Path, config: WorkerConfig) -> bool:
    """Whether a worker runs on a socket and serves `config`."""
    try:
        noted = _note(socket).read_text(encoding="utf-8")
        lock = socket.with_suffix(LOCK_SUFFIX).open("r")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return noted == _digest(config)
    return False


def _note(socket: Path) -> Path:
    return socket.with_suffix(".serving")


def _digest(config: WorkerConfig) -> str:
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
