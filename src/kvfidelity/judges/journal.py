"""An append-only record that several processes and machines write at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvfidelity.judges.locks import Locks


class Journal:
    """JSON objects, one a line, in one file per machine; every machine's file is read.

    No two machines write to the same file, so the folder can be on a network file system, and files
    of several machines can be copied into one folder. A line is on the disk when `append` returns.
    An incomplete line, left by a kill, is skipped.
    """

    def __init__(self, folder: Path, locks: Locks) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._locks = folder, locks
        machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
        self._own_file = folder / f"{machine}.jsonl"
        self._pending: list[bytes] = []
        self._appended = self._written = 0
        self._flush = False
        self._state_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._read_bytes: dict[Path, int] = {}

    def append(self, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write an entry; threads that call this at the same time share one flush to the disk.

        Args:
            durable: the entry must survive a loss of power, not only a kill of the process.

        Raises:
            OSError: the disk is full or not writable.
        """
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._state_lock:
            self._pending.append(line)
            self._appended += 1
            self._flush |= durable
            number = self._appended
        with self._write_lock:
            if self._written >= number:
                return
            with self._state_lock:
                lines, last, flush = self._pending, self._appended, self._flush
                self._pending, self._flush = [], False
            try:
                self._write(b"".join(lines), flush)
            except BaseException:
                # Other threads that wait for these lines try to write them, and raise, themselves.
                with self._state_lock:
                    self._pending, self._flush = lines + self._pending, True
                raise
            self._written = last

    def read_new(self) -> Iterator[dict[str, Any]]:
        """Entries of all machines that were not yielded before; for one thread at a time."""
        for file in sorted(self._folder.glob("*.jsonl")):
            start = self._read_bytes.get(file, 0)
            if file.stat().st_size <= start:
                continue
            with file.open("rb") as handle:
                handle.seek(start)
                for line in handle:
                    if not line.endswith(b"\n"):
                        break
                    self._read_bytes[file] = self._read_bytes.get(file, 0) + len(line)
                    try:
                        entry = json.loads(line.decode("utf-8", "surrogatepass"))
                    except ValueError:
                        continue  # left by a kill; the next writer ended the line
                    if isinstance(entry, dict):
                        yield entry

    def _write(self, lines: bytes, flush: bool) -> None:
        with self._locks.hold(self._own_file.name), self._own_file.open("a+b") as handle:
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    lines = b"\n" + lines
            handle.write(lines)
            handle.flush()
            if flush:
                os.fsync(handle.fileno())
