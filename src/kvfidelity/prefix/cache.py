"""Baselines in memory, and those on disk that it falls back to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kvfidelity.decoding.engine import Scheduler
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.prefix.disk_cache import DiskPrefixCache


class PrefixCache:
    """Keeps the most recently used baselines up to `max_bytes`; a larger one is not kept.

    Args:
        disk: keeps baselines after this process ends; None keeps them in memory only.
    """

    def __init__(self, max_bytes: int, disk: DiskPrefixCache | None = None) -> None:
        self.max_bytes, self._disk = max_bytes, disk
        self._runs: OrderedDict[str, BaselineRun] = OrderedDict()
        self._in_progress: set[str] = set()

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
            self._runs.move_to_end(key)
            return self._runs[key]
        self._in_progress.add(key)
        try:
            run = self._from_disk(key) or self._compute(key, compute)
        finally:
            self._in_progress.discard(key)
        self._runs[key] = run
        while self._runs and sum(run.nbytes for run in self._runs.values()) > self.max_bytes:
            self._runs.popitem(last=False)
        return run

    def clear(self) -> None:
        """Free all baselines that no run is using."""
        self._runs.clear()

    def _from_disk(self, key: str) -> BaselineRun | None:
        return self._disk.load(key) if self._disk is not None else None

    def _compute(self, key: str, compute: Callable[[], BaselineRun]) -> BaselineRun:
        run = compute()
        if self._disk is not None:
            self._disk.store(key, run)
        return run
