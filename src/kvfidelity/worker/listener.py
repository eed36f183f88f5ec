"""Where clients come in: a worker's socket, and the lock that one worker at a time holds."""

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

#: How long a worker waits for its first client, and for another worker to leave its place.
FIRST_CLIENT_S = 10.0
HANDOVER_S = 30.0
#: How often an idle worker looks whether its owner is there.
OWNER_CHECK_S = 1.0


class Listener:
    """Clients of this user's, one after the other; see `listen`."""

    def __init__(self, socket_: socket.socket, idle_s: float, owner: int) -> None:
        self._socket = socket_
        self._idle_s = idle_s
        self._owner = owner
        # Whoever started this worker is at the door; if not, it was killed meanwhile.
        self._timeout_s = min(idle_s, FIRST_CLIENT_S)

    def wait(self) -> socket.socket | None:
        """The next client; None once nobody came for so long, or the owner is gone."""
        deadline = time.monotonic() + self._timeout_s
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
        """A client that is there already."""
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
    """Listen on `path`; None if another worker is there and stays.

    Args:
        idle_s: how long to wait for the next client.
        owner: a process that the worker does not outlive; see `place.owner`. 0 is none.
    """
    with (
        path.with_suffix(".worker").open("w") as lock,
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
    """Lock the file that one worker at a time holds as long as it lives; False if one stays there.

    Two may start at once if a client is killed between starting one and reaching it; and the last
    one may still be on its way out.
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
    print(f"another worker holds {path}, hears nobody and does not leave", file=sys.stderr)
    return False
