"""Never evicted runs in memory, and behind them those on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kvfidelity.session.engine import Hub
from kvfidelity.session.prefix.full import FullRun
from kvfidelity.session.prefix.shelf import Shelf


class PrefixBank:
    """Remembers the latest full runs, up to `max_bytes`; one larger than that is not kept.

    Args:
        shelf: where runs outlive this process, None for nowhere.
    """

    def __init__(self, max_bytes: int, shelf: Shelf | None = None) -> None:
        self.max_bytes, self._shelf = max_bytes, shelf
        self._runs: OrderedDict[str, FullRun] = OrderedDict()
        self._under_way: set[str] = set()

    def get(self, key: str, compute: Callable[[], FullRun], hub: Hub | None = None) -> FullRun:
        """The full run under `key`, computed if it is neither remembered nor on the shelf.

        Args:
            hub: where runs decode together, if they do; one computes what several want.
        """
        if hub is not None:
            hub.until(lambda: key not in self._under_way)
        if key in self._runs:
            self._runs.move_to_end(key)
            return self._runs[key]
        self._under_way.add(key)
        try:
            run = self._taken(key) or self._computed(key, compute)
        finally:
            self._under_way.discard(key)
        self._runs[key] = run
        while self._runs and sum(run.nbytes for run in self._runs.values()) > self.max_bytes:
            self._runs.popitem(last=False)
        return run

    def forget(self) -> None:
        """Let go of all runs that nobody is forking from."""
        self._runs.clear()

    def _taken(self, key: str) -> FullRun | None:
        return self._shelf.take(key) if self._shelf is not None else None

    def _computed(self, key: str, compute: Callable[[], FullRun]) -> FullRun:
        run = compute()
        if self._shelf is not None:
            self._shelf.keep(key, run)
        return run
