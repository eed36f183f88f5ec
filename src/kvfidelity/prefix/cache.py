"""Baselines in memory, and those on disk that it falls back to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kvfidelity.decoding.engine import Scheduler
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.prefix.disk_cache import DiskPrefixCache


class PrefixCache:
    """Keeps the most recently used baselines up to `max_bytes`.

    What has no room goes to the disk.

    Args:
        disk: keeps baselines for later and after this process ends; None keeps them in memory only.
        store_all: write each baseline to the disk when it is computed; otherwise only those that
            memory has no room for.
    """

    def __init__(
        self, max_bytes: int, disk: DiskPrefixCache | None = None, *, store_all: bool = False
    ) -> None:
        self.max_bytes, self._disk, self._store_all = max_bytes, disk, store_all
        self._runs: OrderedDict[str, BaselineRun] = OrderedDict()
        self._in_progress: set[str] = set()
        #: How often a baseline was computed, loaded from disk, and found in memory.
        self.computed = self.loaded = self.shared = 0

    def get(
        self, key: str, compute: Callable[[], BaselineRun], scheduler: Scheduler | None = None
    ) -> BaselineRun:
        """The baseline under `key`, computed if it is neither in memory nor on disk.

        Args:
            scheduler: of the batch that the caller runs in, if any. If another run of the batch
                is computing the same baseline, this one waits for it.
        """
        if scheduler is not None:
            scheduler.wait_until(lambda: key not in self._in_progress)
        if key in self._runs:
            self.shared += 1
            self._runs.move_to_end(key)
            return self._runs[key]
        self._in_progress.add(key)
        try:
            run = self._from_disk(key) or self._compute(key, compute)
        finally:
            self._in_progress.discard(key)
        self._runs[key] = run
        while self._runs and sum(run.nbytes for run in self._runs.values()) > self.max_bytes:
            self._overflow(*self._runs.popitem(last=False))
        return run

    @property
    def summary(self) -> str:
        """How often a baseline was computed, loaded and shared, for a log."""
        return f"prefixes: {self.computed} computed, {self.loaded} loaded, {self.shared} shared"

    def clear(self) -> None:
        """Free all baselines that no run is using."""
        self._runs.clear()

    def _overflow(self, key: str, run: BaselineRun) -> None:
        if self._disk is not None:
            self._disk.store(key, run)

    def _from_disk(self, key: str) -> BaselineRun | None:
        run = self._disk.load(key) if self._disk is not None else None
        self.loaded += run is not None
        return run

    def _compute(self, key: str, compute: Callable[[], BaselineRun]) -> BaselineRun:
        run = compute()
        self.computed += 1
        if self._disk is not None and self._store_all:
            self._disk.store(key, run)
        return run
