"""A worker's socket, and the lock that only one worker at a time holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from kvfidelity.worker.protocol import peer
from kvfidelity.worker.serving import LOCK_SUFFIX

#: Seconds to wait for the first client, and for the socket's previous worker to exit.
FIRST_CLIENT_S = 10.0
HANDOVER_S = 30.0
#: Seconds between an idle worker's checks that its owner is alive.
OWNER_CHECK_S = 1.0


class Listener:
    """Accepts connections of this user only; see `listen`."""

    def __init__(self, socket_: socket.socket, idle_s: float, owner: int) -> None:
        self._socket = socket_
        self._idle_s = idle_s
        self._owner = owner
        # The client that started this worker connects at once, unless it was killed.
        self._timeout_s = min(idle_s, FIRST_CLIENT_S)

    def fileno(self) -> int:
        """For `select`: readable when a client is connecting."""
        return self._socket.fileno()

    def wait(self, times: float = 1.0) -> socket.socket | None:
        """The next client; None when the worker must exit: it was idle, or its owner is gone.

        Args:
            times: how many times as long as usual to wait.
        """
        deadline = time.monotonic() + times * self._timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(min(left, OWNER_CHECK_S) if self._owner else left)
            with contextlib.suppress(TimeoutError):
                if client := self._accepted():
                    self._timeout_s = self._idle_s
                    return client
                continue
            if self._owner and not psutil.pid_exists(self._owner):
                return None
        return None

    def poll(self) -> socket.socket | None:
        """A client that is already connecting, or None."""
        while select.select([self._socket], [], [], 0)[0]:
            if client := self._accepted():
                return client
        return None

    def _accepted(self) -> socket.socket | None:
        client, _ = self._socket.accept()
        if peer(client).uid == os.getuid():
            return client
        client.close()
        return None


@contextlib.contextmanager
def listen(path: Path, idle_s: float, owner: int) -> Iterator[Listener | None]:
    """Listen on `path`; None if another worker is listening there.

    Args:
        idle_s: seconds to wait for the next client.
        owner: a process id; the worker exits when it ends (`socket_path.owner_pid`). 0: no owner.
    """
    with (
        path.with_suffix(LOCK_SUFFIX).open("w") as lock,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        if not _acquire_lock(lock, path):
            yield None
            return
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        try:
            yield Listener(listener, idle_s, owner)
        finally:
            path.unlink(missing_ok=True)


def _acquire_lock(lock: IO[str], path: Path) -> bool:
    """Take the lock that a worker holds until its process ends; False if another one keeps it.

    Two workers can start at once if a client is killed between starting one and connecting to it.
    The socket's previous worker may also still be exiting.
    """
    deadline = time.monotonic() + HANDOVER_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if not probe.connect_ex(str(path)):
                return False
        time.sleep(0.02)
    print(f"another worker holds {path}, does not answer and does not exit", file=sys.stderr)
    return False
