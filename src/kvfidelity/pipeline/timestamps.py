"""Dates of files that would mislead Snakemake.

It fails a job whose output is older than its input, until the clock has caught up: that is what is
left where the clock was set back. And it takes an old benchmark for an old output.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path


def redate_future_files(folders: Iterable[Path]) -> int:
    """Date what lies in these folders and is dated later than now just before now, in its order.

    Files that were written since the clock was set back are rightly newer than those.

    Returns:
        How many files there were.
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
    """Date the files of a folder now, as far as they are ours to date."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            os.utime(path)
