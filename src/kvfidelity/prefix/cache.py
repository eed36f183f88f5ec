"""Never evicted runs in memory, and behind them those on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kvfidelity.decoding.engine import Scheduler
from kvfidelity.prefix.baseline_run import BaselineRun
from kvfidelity.prefix.disk_cache import DiskPrefixCache


class PrefixCache:
    """Remembers the latest full runs, up to `max_bytes`; one larger than that is not kept.

    Args:
        shelf: where runs outlive this process, None for nowhere.
    """

    def __init__(self, max_bytes: int, disk: DiskPrefixCache | None = None) -> None:
        self.max_bytes, self._disk = max_bytes, disk
        self._runs: OrderedDict[str, BaselineRun] = OrderedDict()
        self._in_progress: set[str] = set()

    def get(
        self, key: str, compute: Callable[[], BaselineRun], scheduler: Scheduler | None = None
    ) -> BaselineRun:
        """The full run under `key`, computed if it is neither remembered nor on the shelf.

        Args:
            hub: where runs decode together, if they do; one computes what several want.
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
        """Let go of all runs that nobody is forking from."""
        self._runs.clear()

    def _from_disk(self, key: str) -> BaselineRun | None:
        return self._disk.load(key) if self._disk is not None else None

    def _compute(self, key: str, compute: Callable[[], BaselineRun]) -> BaselineRun:
        run = compute()
        if self._disk is not None:
            self._disk.store(key, run)
        return run
