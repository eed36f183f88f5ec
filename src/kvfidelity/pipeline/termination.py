"""A message at once when Snakemake gets SIGTERM.

Snakemake then starts no further jobs and waits for the running ones. It says so only after a job
has ended, which can take minutes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def announce_sigterm(running: Callable[[], int]) -> None:
    """Write one line to standard error on SIGTERM, then call the handler that was there before.

    Args:
        running: gives the number of running jobs.
    """
    before = signal.getsignal(signal.SIGTERM)

    def announce(number: int, frame: FrameType | None) -> None:
        # Not by print: the signal may have interrupted one, whose buffer is locked.
        os.write(2, message(running(), os.getpgrp()).encode())
        if callable(before):
            # In a thread: it takes locks that the interrupted main thread may hold.
            threading.Thread(target=before, args=(number, frame)).start()

    if callable(before):
        signal.signal(signal.SIGTERM, announce)


def message(jobs: int, group: int) -> str:
    """The line for this number of jobs in this process group."""
    some = "1 running job" if jobs == 1 else f"{jobs} running jobs"
    return (
        f"SIGTERM: no further job starts; waiting for {some} to end; Ctrl-C or `kill -INT -- "
        f"-{group}` stops them\n"
    )
