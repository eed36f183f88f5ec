"""Named locks that processes on one or several machines share; a kill releases them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kvfidelity.errors import UserError

FIRST_PAUSE_S, MAX_PAUSE_S = 0.002, 0.1


class Locks:
    """Locks on single bytes of one file, one byte per name.

    The kernel, or the server of a network file system, frees a byte when its process ends for any
    reason. Such a lock belongs to a whole process, so this class also separates its threads.

    Args:
        file: created by the first lock; it stays empty.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._handle: int | None = None
        self._held: set[str] = set()
        self._changed = threading.Condition()

    def acquire(self, name: str, *, wait: bool = True) -> bool:
        """Take a lock; False if another thread or process has it and `wait` is not set.

        Raises:
            UserError: the file cannot be written, or its file system has no locks.
        """
        with self._changed:
            self._open()
            while name in self._held:
                if not wait:
                    return False
                self._changed.wait()
            self._held.add(name)
        pause = FIRST_PAUSE_S
        while not self._locked(name):
            if not wait:
                self._discard(name)
                return False
            # Not the kernel's own waiting: it reports deadlocks of threads that do not exist.
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)
        return True

    def release(self, name: str) -> None:
        """Free a lock that this process holds."""
        with self._changed:
            handle = self._open()
        fcntl.lockf(handle, fcntl.LOCK_UN, 1, _byte_offset(name))
        self._discard(name)

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a lock during a `with` block."""
        self.acquire(name)
        try:
            yield
        finally:
            self.release(name)

    def _open(self) -> int:
        if self._handle is None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._handle = os.open(self._file, flags, 0o644)
            except OSError as error:
                raise UserError(
                    f"{self._file} cannot be written ({error.strerror}): answers that are missing "
                    "could not be kept, so nothing is asked; make `verdict_store` writable"
                ) from None
        return self._handle

    def _locked(self, name: str) -> bool:
        assert self._handle is not None
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_offset(name))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            self._discard(name)
            raise UserError(
                f"{self._file}: its file system has no locks ({error.strerror}); set "
                "`verdict_store` to a folder on one that does"
            ) from None
        return True

    def _discard(self, name: str) -> None:
        with self._changed:
            self._held.discard(name)
            self._changed.notify_all()


def _byte_offset(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
