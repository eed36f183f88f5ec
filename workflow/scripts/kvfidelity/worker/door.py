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
FIRST_S = 10.0
LEAVING_S = 30.0
#: How often an idle worker looks whether its owner is there.
LOOK_S = 1.0


class Door:
    """Clients of this user's, one after the other; see `open_door`."""

    def __init__(self, listener: socket.socket, idle_s: float, owner: int) -> None:
        self._listener = listener
        self._idle_s = idle_s
        self._owner = owner
        # Whoever started this worker is at the door; if not, it was killed meanwhile.
        self._patience_s = min(idle_s, FIRST_S)

    def wait(self) -> socket.socket | None:
        """The next client; None once nobody came for so long, or the owner is gone."""
        deadline = time.monotonic() + self._patience_s
        while (left := deadline - time.monotonic()) > 0:
            self._listener.settimeout(min(left, LOOK_S) if self._owner else left)
            with contextlib.suppress(TimeoutError):
                if client := self._accepted():
                    self._patience_s = self._idle_s
                    return client
                continue
            if self._owner and not psutil.pid_exists(self._owner):
                return None
        return None

    def look(self) -> socket.socket | None:
        """A client that is there already."""
        while select.select([self._listener], [], [], 0)[0]:
            if client := self._accepted():
                return client
        return None

    def _accepted(self) -> socket.socket | None:
        client, _ = self._listener.accept()
        if peer(client).uid == os.getuid():
            return client
        client.close()
        return None


@contextlib.contextmanager
def open_door(path: Path, idle_s: float, owner: int) -> Iterator[Door | None]:
    """Listen on `path`; None if another worker is there and stays.

    Args:
        idle_s: how long to wait for the next client.
        owner: a process that the worker does not outlive; see `place.owner`. 0 is none.
    """
    with (
        path.with_suffix(".worker").open("w") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        if not _took(place, path):
            yield None
            return
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        try:
            yield Door(listener, idle_s, owner)
        finally:
            path.unlink(missing_ok=True)


def _took(place: IO[str], path: Path) -> bool:
    """Lock the file that one worker at a time holds as long as it lives; False if one stays there.

    Two may start at once if a client is killed between starting one and reaching it; and the last
    one may still be on its way out.
    """
    deadline = time.monotonic() + LEAVING_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            if not door.connect_ex(str(path)):
                return False
        time.sleep(0.02)
    print(f"another worker holds {path}, hears nobody and does not leave", file=sys.stderr)
    return False
