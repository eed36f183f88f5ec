"""Answers that were paid for, kept the moment they arrive and never asked for again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class AnswerStore:
    """An append-only file of answers by key, shared by any number of processes of one machine.

    Each line is one JSON object; half a line that a kill left behind is skipped. Lines are written
    under a lock and flushed to the disk before `put` returns.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "answers.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        self._read = 0

    @staticmethod
    def key(request: Mapping[str, Any]) -> str:
        """SHA-256 of a request: model, messages and parameters."""
        text = json.dumps(request, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer under `key`, of whichever process."""
        if key not in self._known:
            self._refresh()
        return self._known.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer; on the disk when this returns."""
        line = json.dumps({"key": key, **answer}, ensure_ascii=False).encode() + b"\n"
        with self._file.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if handle.tell() and not self._ends_with_newline():
                handle.write(b"\n")  # half a line of a killed process: keep it apart
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        self._known[key] = dict(answer)

    def _ends_with_newline(self) -> bool:
        with self._file.open("rb") as handle:
            handle.seek(-1, os.SEEK_END)
            return handle.read(1) == b"\n"

    def _refresh(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as handle:
            handle.seek(self._read)
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with contextlib.suppress(ValueError, KeyError):
                    entry = json.loads(line)
                    self._known[entry.pop("key")] = entry
