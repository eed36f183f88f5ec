"""An append-only record that several processes and machines write at the same time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.judges.json_text import parse_json
from kvfidelity.judges.locks import Locks
from kvfidelity.judges.room import Room

BOM = b"\xef\xbb\xbf"


class Journal:
    """JSON objects, one a line, in one file per machine; every machine's file is read.

    No two machines write to the same file, so the folder can be on a network file system, and files
    of several machines can be copied into one folder. A line is on the disk when `append` returns.
    A line that is no entry is skipped and named once. Reading needs no permission to write.
    """

    def __init__(self, folder: Path, locks: Locks) -> None:
        self._folder, self._locks = folder, locks
        machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
        self._own_file = folder / f"{machine}.jsonl"
        self._pending: list[bytes] = []
        self._appended = self._written = 0
        self._flush = False
        self._state_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._read_bytes: dict[Path, int] = {}
        self._named: set[Path] = set()
        self._room = Room(folder, machine)

    def make_room(self, judge: str, answers: int) -> None:
        """Make sure that so many answers of a judge can be written, whatever fills the disk then.

        Raises:
            UserError: the folder cannot be written, or its disk is full.
        """
        if self._room.holds(judge, answers):
            return
        with self._locks.hold(self._own_file.name):
            try:
                self._room.extend(judge, answers)
            except OSError as error:
                raise UserError(
                    f"{self._folder} has no room for answers ({error.strerror}): free some space; "
                    "nothing more is asked, run again to continue"
                ) from None

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

    def read_new(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Entries of all machines that were not yielded before, each with its file.

        For one thread at a time.

        Raises:
            UserError: a file cannot be read.
        """
        for file in sorted(self._folder.glob("*.jsonl")):
            try:
                yield from self._read_file(file)
            except OSError as error:
                raise UserError(
                    f"{file} cannot be read ({error.strerror}): its answers would be asked for "
                    "again; make it readable, or move it away"
                ) from None

    def name_unread(self, file: Path, why: str) -> None:
        """Say once of a file that a line of it is not read."""
        if file not in self._named:
            self._named.add(file)
            print(f"{file}: a line is skipped: {why}", file=sys.stderr)

    def _read_file(self, file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        start = self._read_bytes.get(file, 0)
        if file.stat().st_size <= start:
            return
        with file.open("rb") as handle:
            handle.seek(start)
            for line in handle:
                entry = _entry(line)
                if entry is None and not line.endswith(b"\n"):
                    return  # being written, or left by a kill: then the next writer ends it
                self._read_bytes[file] = self._read_bytes.get(file, 0) + len(line)
                if entry is not None:
                    yield file, entry
                elif line.strip():
                    self.name_unread(file, "it was cut off by a kill, or is damaged")

    def _write(self, lines: bytes, flush: bool) -> None:
        with self._locks.hold(self._own_file.name):
            while True:
                try:
                    return self._write_locked(lines, flush)
                except OSError as error:
                    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                    if not full or not self._room.release():
                        raise

    def _write_locked(self, lines: bytes, flush: bool) -> None:
        with self._own_file.open("a+b") as handle:
            if handle.seek(0, os.SEEK_END):
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    lines = b"\n" + lines
            handle.write(lines)
            handle.flush()
            if flush:
                os.fsync(handle.fileno())


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None if it is not a whole JSON object."""
    try:
        found = parse_json(line.removeprefix(BOM).decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
