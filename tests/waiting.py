"""Waiting in tests: for a condition, up to a limit that only what hangs reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 300.0
#: Longer than any test waits: for what must not end by itself.
FOREVER_S = 3600.0


def wait_until(holds: Callable[[], object], why: Callable[[], object] = str) -> None:
    """Wait for what another process does.

    Args:
        why: what to say if it does not happen, such as the end of a log.
    """
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain {why()}"
        time.sleep(0.05)
