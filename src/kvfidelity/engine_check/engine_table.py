"""A bookkeeping applied to a cache of the core, so that the core computes what an engine with it
answers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.slots import SlotTable, as_grid
from kvfidelity.engine_check.bookkeeping import Bookkeeping, Ranges
from kvfidelity.engine_check.probes import Eviction


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

    def keep(self, kept: Tensor | RaggedKeepSet) -> None:
        before = len(self)
        super().keep(kept)
        assert isinstance(kept, Tensor)  # or it was refused
        old, new = self.position.numpy(), np.arange(len(self))
        slots = as_grid(kept).expand(old.shape).numpy()
        moved = self.bookkeeping.moved(old, slots, new, before - len(self))
        self._position = torch.from_numpy(moved.copy())

    def keep_ragged(self, kept: RaggedKeepSet) -> Tensor:
        raise ValueError("probes of engines evict to one size for all kv heads")

    def slots_of(self, eviction: Eviction) -> Tensor:
        """Slots of the tokens that an eviction keeps, this bookkeeping too, and that are cached.

        Returns:
            int64 [L', G', k].
        """
        rows = []
        for row, ranges in enumerate(eviction.keep):
            layer, head = (row, 0) if eviction.by_layer else (0, row)
            layers, heads = self.token_index.shape[:2]
            cached = self.token_index[min(layer, layers - 1), min(head, heads - 1)]
            tokens = tokens_of(ranges)[self.bookkeeping.leaves_out :]
            rows.append(torch.isin(cached, tokens).nonzero()[:, 0])
        slots = torch.stack(rows)
        return slots[:, None] if eviction.by_layer else slots[None]


def tokens_of(ranges: Ranges) -> Tensor:
    """Token indices of half-open ranges, int64 [k]."""
    return torch.cat([torch.arange(start, stop) for start, stop in ranges])


def evict(cache: ManagedCache, eviction: Eviction) -> None:
    """Evict from a cache whose slot table is an EngineTable, on a CPU."""
    table = cache.slot_table
    assert isinstance(table, EngineTable)
    if not table.bookkeeping.evicts:
        return
    slots = table.slots_of(eviction)
    base = table.bookkeeping.shift_base
    held = [layer.rotated_keys.clone() for layer in cache.layers] if base else []
    cache.keep(slots)
    if base is None:
        cos, sin = cache.rotary.angles(table.position, cache.device)
    else:
        cos, sin = _angles(torch.arange(len(table)) - slots, base, held[0].shape[-1])
    for index, layer in enumerate(cache.layers):
        angles = (each[index if len(each) > 1 else 0] for each in (cos, sin))
        if base is None:
            layer.rerotate(*angles)
        else:
            rows = slots[index if len(slots) > 1 else 0, :, :, None]
            keys = held[index].gather(1, rows.expand(held[index].shape[0], -1, cos.shape[-1]))
            layer.rotated_keys.copy_(rotate(keys, *angles))


def _angles(position: Tensor, base: float, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin [..., n, width] of positions [..., n], by the formula of RoPE."""
    frequencies = base ** (-torch.arange(0, width, 2) / width)
    angles = position[..., None] * frequencies.repeat(2)
    return angles.cos(), angles.sin()
