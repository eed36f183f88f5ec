"""File times that would mislead Snakemake, corrected when a run starts.

Snakemake fails a job whose output is older than its input. After the clock was set back, or results
came from a machine whose clock is fast, every job would fail until the clock has caught up, with a
message that names no cause. Looking at the times of 5,000 runs takes about two seconds.

Snakemake also reruns a job whose benchmark is older than its input. It has no record of benchmarks,
so copying a folder without its times would rerun finished jobs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

#: Nanoseconds; before any file of the workflow.
LONG_AGO = 946_684_800 * 10**9


def redate_future_files(folders: Iterable[Path]) -> int:
    """Date files that are from the future just before now, and keep their order.

    Files that were written since the clock was set back stay newer than those.

    Returns:
        The number of such files.
    """
    now = time.time_ns()
    found = [
        (path.lstat().st_mtime_ns, path)
        for folder in folders
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink() and path.exists()
    ]
    future = sorted(entry for entry in found if entry[0] > now)
    ranks = {moment: rank for rank, moment in enumerate(sorted({at for at, _ in future}))}
    for at, path in future:
        new_time = now - 1000 * (len(ranks) - ranks[at])
        os.utime(path, ns=(new_time, new_time))
    return sum(not path.is_dir() for _, path in future)


def date_now(folder: Path) -> None:
    """Date the files of a folder now; files of other users are left alone."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            os.utime(path)
