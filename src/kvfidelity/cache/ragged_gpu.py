"""What a cache on a GPU does once its kv heads hold different numbers of slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvfidelity.cache.capacity import GRANULE, grown_capacity
from kvfidelity.cache.device_positions import HeadPositions
from kvfidelity.cache.flat_layer import FlatLayer
from kvfidelity.cache.ragged import RaggedKeepSet

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


class RaggedOnGpu:
    """See `cache.ragged_heads.RaggedHeads`: the kernels see each kv head as a separate
    cache.

    positions: those of its slots. They are known from the first eviction on.
    """

    def __init__(self, positions: HeadPositions | None = None) -> None:
        self._positions = positions
        self._table: Any = None  # of the forward under way

    @property
    def positions(self) -> HeadPositions:
        """Positions on the device."""
        assert self._positions is not None
        return self._positions

    def append(self, cache: ManagedCache, positions: Tensor) -> None:
        self._table = None
        self.positions.append(cache.slot_table, positions.shape[-1])

    def update(self, cache: ManagedCache, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """Nothing yet: the kernels append when they attend."""

    def attend(
        self, cache: ManagedCache, layer_idx: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        from kvfidelity.cache.triton.head_feed import feed_by_head, head_feed_table

        if self._table is None:
            count = query.shape[2]
            cache.make_room(count, query, key, value)
            self._table = head_feed_table([cache], [count], key.shape[1])
        table = self._table
        rows = table.sequences[layer_idx], table.layers[layer_idx]
        out: Tensor = feed_by_head(query, key, value, *rows, table, cache.scaling)
        return out

    def keep(self, cache: ManagedCache, kept: RaggedKeepSet) -> None:
        from kvfidelity.cache.triton.move import move_slots

        counts = kept.counts.tolist()
        layers = [
            FlatLayer(row, GRANULE, layer.key_buffer, layer.value_buffer)
            for row, layer in zip(counts, cache.layers, strict=True)
        ]
        move_slots(cache.layers, layers, counts, kept.slots.contiguous())
        cache.layers = layers
        self._positions = HeadPositions(cache.slot_table, cache.device)

    def rotated_keys(self, cache: ManagedCache, layer_idx: int, group: int) -> Tensor:
        head = cache.layers[layer_idx].heads[group]
        position = self.positions.positions[layer_idx, group : group + 1, : head.slots]
        return cache.rotate_by(head.live_keys, position)

    def rectangle(self, cache: ManagedCache, layer_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        layer: FlatLayer = cache.layers[layer_idx]
        starts, counts = torch.tensor([layer.starts, layer.counts], device=cache.device)
        column = torch.arange(max(layer.counts), device=cache.device)
        live = column < counts[:, None]
        slot = torch.where(live, starts[:, None] + column, 0)
        positions = self.positions.positions[layer_idx, :, : column.numel()]
        rotated = cache.rotate_by(layer.key_buffer[slot], positions.where(live, 0))
        dead = ~live[..., None]
        values = layer.value_buffer[slot].masked_fill(dead, 0)
        return rotated.masked_fill(dead, 0), values, live

    def reserve(self, cache: ManagedCache, extra: int) -> None:
        self.positions.reserve(int(cache.slot_table.counts.max()) + extra)
        layers: list[FlatLayer] = cache.layers
        if all(layer.room >= extra for layer in layers):
            return
        mean = sum(sum(layer.counts) for layer in layers) // sum(len(e.counts) for e in layers)
        room = grown_capacity(mean + extra, mean + layers[0].room) - mean
        cache.layers = _copies(layers, room)

    def fork(self, copy: ManagedCache) -> RaggedOnGpu:
        copy.layers = _copies(copy.layers, GRANULE)
        return RaggedOnGpu(HeadPositions(copy.slot_table, copy.device))

    def sharing(self) -> RaggedOnGpu:
        return RaggedOnGpu(self._positions)


def _copies(layers: list[FlatLayer], room: int) -> list[FlatLayer]:
    from kvfidelity.cache.triton.move import move_slots

    copies = [
        FlatLayer(layer.counts, room, layer.key_buffer, layer.value_buffer) for layer in layers
    ]
    move_slots(layers, copies, [layer.counts for layer in layers])
    return copies
