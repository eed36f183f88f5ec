"""Detects that a client died during its request."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from types import TracebackType

#: Seconds for a dead client's request to reach its next event; torch cannot be interrupted.
GRACE_S = 5.0


class Liveness:
    """While open, watches the client at the other end of `connection`.

    gone: whether the client has died; to be checked at every event.

    Args:
        grace_s: if this is still open `grace_s` seconds after the client died, the process exits,
            because its work is not needed and other clients wait; they start a new worker. None
            never exits, for a worker that serves other clients at the same time.
    """

    def __init__(self, connection: socket.socket, grace_s: float | None) -> None:
        self.gone = False
        self._grace_s = grace_s
        self._connection = connection
        self._over = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Liveness:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._wake.close()
        self._thread.join()
        self._woken.close()

    def _watch(self) -> None:
        poller = select.poll()
        # A waiting client sends nothing; its end of the connection closes when it dies.
        poller.register(self._connection, select.POLLRDHUP)
        poller.register(self._woken, select.POLLIN)
        poller.poll()
        if self._over.is_set():
            return
        self.gone = True
        if self._grace_s is not None and not self._over.wait(self._grace_s):
            print("the client is gone, its turn takes long: exiting", file=sys.stderr, flush=True)
            os._exit(3)
