"""What a cache on a CPU does once its kv heads hold different numbers of slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.ragged_layer import RaggedLayer

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


class RaggedOnCpu:
    """See `cache.ragged_heads.RaggedHeads`: each kv head is computed by itself, in plain torch."""

    def __init__(self) -> None:
        self._positions: Tensor | None = None
        self._angles: tuple[Tensor, Tensor] | None = None

    def append(self, cache: ManagedCache, positions: Tensor) -> None:
        self._positions = positions

    def update(self, cache: ManagedCache, layer_idx: int, key: Tensor, value: Tensor) -> None:
        assert self._positions is not None
        self._angles = cache.rotary.angles(self._positions[layer_idx], key.device)
        cache.layers[layer_idx].append(key, value, self._angles)

    def attend(
        self, cache: ManagedCache, layer_idx: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        assert self._angles is not None
        cache.note_queries(layer_idx, query)
        layer: RaggedLayer = cache.layers[layer_idx]
        if cache.scores is None:
            return layer.attend(query[0], self._angles, cache.scaling).transpose(0, 1)[None]
        given = (query[0], self._angles, cache.scaling, cache.slot_table.columns)
        out, sums = layer.attend_with_scores(*given)
        last = None
        if cache.latest_is_last:
            last = sums if query.shape[2] == 1 else layer.last_scores(*given)
        cache.scores.add(layer_idx, sums, continues=cache.continues, last=last)
        return out.transpose(0, 1)[None]

    def keep(self, cache: ManagedCache, kept: RaggedKeepSet) -> None:
        for index, rows in enumerate(kept.rows()):
            layer = cache.layers[index]
            if isinstance(layer, RaggedLayer):
                layer.keep(rows)
            else:
                cache.layers[index] = RaggedLayer.of(layer, rows)
        if cache.slot_table.mode.traits.renumbers:
            cos, sin = cache.rotary.angles(torch.arange(int(kept.counts.max())), cache.device)
            for layer in cache.layers:
                for head in layer.heads:
                    head.rerotate(cos[: head.slots], sin[: head.slots])

    def rotated_keys(self, cache: ManagedCache, layer_idx: int, group: int) -> Tensor:
        keys: Tensor = cache.layers[layer_idx].heads[group].rotated_keys
        return keys

    def rectangle(self, cache: ManagedCache, layer_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        heads = cache.layers[layer_idx].heads
        keys, values = (
            pad_sequence([getattr(head, name)[0] for head in heads], batch_first=True)
            for name in ("rotated_keys", "live_values")
        )
        counts = torch.tensor([head.slots for head in heads])
        return keys, values, torch.arange(keys.shape[1]) < counts[:, None]

    def reserve(self, cache: ManagedCache, extra: int) -> None:
        for layer in cache.layers:
            for head in layer.heads:
                head.reserve(head.slots + extra)

    def fork(self, copy: ManagedCache) -> RaggedOnCpu:
        copy.layers = [layer.fork() for layer in copy.layers]
        return RaggedOnCpu()

    def sharing(self) -> RaggedOnCpu:
        return RaggedOnCpu()
