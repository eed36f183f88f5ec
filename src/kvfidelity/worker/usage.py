"""Time and memory that a job took in the worker, as notes in its artifact.

Snakemake's benchmark of a job measures the client, which only waits. Runs in one batch share the
process, so the seconds of each include the others'.
"""

from __future__ import annotations

import resource
import sys
import time

from kvfidelity.records.notes import BATCH_SIZE, CPU, PEAK, WALL


class Usage:
    """Measures from its creation on.

    Args:
        batch_size: most runs that share the process.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def notes(self) -> dict[str, str]:
        """Seconds so far; the peak memory is the process's since its start."""
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            WALL: f"{time.perf_counter() - self._wall:.6f}",
            CPU: f"{time.process_time() - self._cpu:.6f}",
            PEAK: str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
            BATCH_SIZE: str(self._batch_size),
        }
