"""Keeps room on the disk for answers that are on their way, so that no paid one is lost."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kvfidelity.judges.completion import HEAD, TAIL

#: Bytes of an answer's entry at most: six per character of text and refusal, and the rest.
ENTRY_BYTES = 2 * 6 * (HEAD + TAIL) + 20_000


class Room:
    """Files whose bytes are given up for answers once the disk is full, one per judge.

    Args:
        folder: where they are. machine: begins their names; no two machines share a file.
    """

    def __init__(self, folder: Path, machine: str) -> None:
        self._folder, self._machine = folder, machine

    def holds(self, judge: str, answers: int) -> bool:
        """Whether so many answers of a judge fit."""
        return _size(self._file(judge)) >= answers * ENTRY_BYTES

    def extend(self, judge: str, answers: int) -> None:
        """Make sure that so many answers of a judge fit.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        handle = os.open(self._file(judge), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(handle, 0, answers * ENTRY_BYTES)
        finally:
            os.close(handle)

    def release(self) -> bool:
        """Give up the room of one answer; False if there is none."""
        for file in self._folder.glob("*.room"):
            ours = file.name.startswith(f"{self._machine}-")
            if ours and (size := _size(file)):
                os.truncate(file, max(0, size - ENTRY_BYTES))
                return True
        return False

    def _file(self, judge: str) -> Path:
        name = hashlib.sha256(judge.encode()).hexdigest()[:8]
        return self._folder / f"{self._machine}-{name}.room"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
