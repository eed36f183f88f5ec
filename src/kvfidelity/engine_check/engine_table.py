"""A bookkeeping applied to a cache of the core, so that the core computes what an engine with it
answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable, as_grid
from kvfidelity.engine_check.bookkeeping import Bookkeeping, Ranges


class EngineTable(SlotTable):
    """Slots of one sequence under a bookkeeping; integers only."""

    def __init__(self, bookkeeping: Bookkeeping, tokens: int = 0) -> None:
        super().__init__(PositionMode.ORIGINAL, capacity=max(tokens, 1))
        self.bookkeeping = bookkeeping
        if tokens:
            self.append(tokens)

    @property
    def next_position(self) -> int:
        if not self.evictions:
            return self.tokens_seen
        return self.bookkeeping.next_position(len(self), self.tokens_seen, self.evictions)

    def keep(self, kept: Tensor) -> None:
        before = len(self)
        super().keep(kept)
        old, new = self.position.numpy(), np.arange(len(self))
        slots = as_grid(kept).expand(old.shape).numpy()
        moved = self.bookkeeping.moved(old, slots, new, before - len(self))
        self._position = torch.from_numpy(moved.copy())

    def slots_of(self, keep: Sequence[Ranges]) -> Tensor:
        """Slots of the tokens in `keep` that this bookkeeping keeps and that are cached.

        Args:
            keep: ranges of token indices, one list for all heads or one for each kv head.

        Returns:
            int64 [G', k].
        """
        rows = []
        for head, ranges in enumerate(keep):
            tokens = tokens_of(ranges)[self.bookkeeping.leaves_out :]
            cached = self.token_index[0, min(head, self.token_index.shape[1] - 1)]
            rows.append(torch.isin(cached, tokens).nonzero()[:, 0])
        return torch.stack(rows)


def tokens_of(ranges: Ranges) -> Tensor:
    """Token indices of half-open ranges, int64 [k]."""
    return torch.cat([torch.arange(start, stop) for start, stop in ranges])


def evict(cache: ManagedCache, keep: Sequence[Ranges]) -> None:
    """Evict from a cache whose slot table is an EngineTable, on a CPU.

    Args:
        keep: see `EngineTable.slots_of`.
    """
    table = cache.slot_table
    assert isinstance(table, EngineTable)
    if not table.bookkeeping.evicts:
        return
    slots = table.slots_of(keep)
    cache.keep(slots[0] if len(slots) == 1 else slots[None])
    cos, sin = cache.rotary.angles(table.position, cache.device)
    for index, layer in enumerate(cache.layers):
        of_layer = index if len(cos) > 1 else 0
        layer.rerotate(cos[of_layer], sin[of_layer])
