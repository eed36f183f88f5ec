"""Notices that a client died in the middle of its request."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from types import TracebackType

#: How long a request of a dead client may go on until it next reports; torch cannot be interrupted.
GRACE_S = 5.0


class Liveness:
    """While open, looks whether the client at the other end of `connection` is still there.

    `gone` tells, to be asked between turns. Where nobody asks within `grace_s` the process ends:
    what it computes is for nobody, and it keeps others waiting. They start a new worker. With None
    it goes on, for others are served by it too.
    """

    def __init__(self, connection: socket.socket, grace_s: float | None) -> None:
        self.gone = False
        self._grace_s = grace_s
        self._connection = connection
        self._over = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._look, daemon=True)

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

    def _look(self) -> None:
        poller = select.poll()
        # A client says nothing while it waits; its end of the line closes when it dies.
        poller.register(self._connection, select.POLLRDHUP)
        poller.register(self._woken, select.POLLIN)
        poller.poll()
        if self._over.is_set():
            return
        self.gone = True
        if self._grace_s is not None and not self._over.wait(self._grace_s):
            print("the client is gone and its turn is long: leaving", file=sys.stderr, flush=True)
            os._exit(3)
