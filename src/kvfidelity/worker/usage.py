"""What a job took of the process that did it, as notes of its artifact.

Snakemake's benchmark of such a job sees the client, which only waits. Runs that are decoded
together share the process, so each one's seconds hold the others' too.
"""

from __future__ import annotations

import resource
import sys
import time

from kvfidelity.records.notes import BATCH_SIZE, CPU, PEAK, WALL


class Usage:
    """Counts from its construction on.

    Args:
        batch_size: how many runs may share the process.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def notes(self) -> dict[str, str]:
        """What was taken so far; the peak is the process's since its start."""
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            WALL: f"{time.perf_counter() - self._wall:.6f}",
            CPU: f"{time.process_time() - self._cpu:.6f}",
            PEAK: str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
            BATCH_SIZE: str(self._batch_size),
        }
