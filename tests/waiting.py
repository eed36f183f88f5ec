"""Waiting in tests: for a condition, up to a limit that only what hangs reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 300.0
#: Longer than any test waits: for what must not end by itself.
FOREVER_S = 3600.0


def wait_until(
    holds: Callable[[], object], why: Callable[[], object] = str, pause_s: float = 0.05
) -> None:
    """Wait for what another process does.

    Args:
        why: what to say if it does not happen, such as the end of a log.
        pause_s: seconds between two looks; more where a look takes as long itself.
    """
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain {why()}"
        time.sleep(pause_s)
