"""One forward of caches of which some hold different numbers of slots in their kv heads.

To the kernels of `feed` each kv head is then a cache of its own: of one kv head, with the query
heads of that one, and with lengths, positions and addresses that differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton.addresses import head_rows, ring_size_of
from kvfidelity.cache.triton.feed import Workspace, feed_layer
from kvfidelity.cache.triton.feed_table import FeedTable
from kvfidelity.cache.triton.layout import FeedField


class HeadForward:
    """Appends, attends and sums scores in each layer of one forward.

    Args:
        caches, counts: cache i has appended `counts[i]` tokens to its slot table and has room for
            them in all layers; no buffer moves until the forward has ended.
        query: [1, H, R, d]; groups: G.
    """

    def __init__(
        self, caches: Sequence[ManagedCache], counts: Sequence[int], query: Tensor, groups: int
    ) -> None:
        self._groups = groups
        self._tables = head_feed_tables(caches, counts, groups)
        largest = max(self._tables, key=lambda table: table.slots)
        self._workspace = Workspace(largest, self._by_head(query), 1)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """`feed_layer` of that layer: [1, R, H, d] of [1, H, R, d] and [1, G, R, d]."""
        _, heads, rows, size = query.shape
        out = feed_layer(
            self._tables[layer],
            layer,
            self._workspace,
            self._by_head(query),
            self._by_head(key),
            self._by_head(value),
            scaling,
        )
        by_head = out.view(self._groups, rows, heads // self._groups, size)
        return by_head.transpose(0, 1).reshape(1, rows, heads, size)

    def _by_head(self, states: Tensor) -> Tensor:
        """[1, heads, R, d] as [1, heads / G, G * R, d]: one kv head's rows after another's."""
        _, heads, rows, size = states.shape
        parts = states.view(self._groups, heads // self._groups, rows, size).transpose(0, 1)
        return parts.reshape(1, heads // self._groups, self._groups * rows, size)


def head_feed_tables(
    caches: Sequence[ManagedCache], counts: Sequence[int], groups: int
) -> list[FeedTable]:
    """A table for each layer, of which each kv head of a cache is a cache; see `feed_table`."""
    device, layers, rows = caches[0].device, len(caches[0].layers), sum(counts)
    fields = np.zeros((layers, len(caches), groups, len(FeedField)), dtype=np.int64)
    slots = np.empty((layers, len(caches), groups), dtype=np.int64)
    first_row = np.arange(groups) * rows
    for index, (cache, count) in enumerate(zip(caches, counts, strict=True)):
        table, own = cache.slot_table, fields[:, index]
        slots[:, index] = table.counts.expand(layers, groups).numpy()
        own[..., FeedField.SLOTS] = slots[:, index] - count
        own[..., FeedField.COUNT] = count
        own[..., FeedField.FIRST_ROW] = first_row
        own[..., FeedField.FIRST_TOKEN] = table.tokens_seen - count
        following = table.next_positions.expand(layers, groups).numpy()
        own[..., FeedField.FIRST_POSITION] = following - count
        own[..., FeedField.SCORES_CAPACITY] = cache.scores.capacity if cache.scores else 0
        own[..., FeedField.CONTINUES] = cache.continues
        own[..., FeedField.RING_SIZE] = ring_size_of(cache)
        own[..., FeedField.LATEST_IS_LAST] = cache.latest_is_last
        first_row = first_row + count
    heads = slots.reshape(layers, -1)
    before = heads.cumsum(1) - heads
    fields[..., FeedField.FIRST_SLOT] = before.reshape(slots.shape)
    sequences = torch.from_numpy(fields).view(*heads.shape, -1).to(device)
    addresses = np.stack([head_rows(cache) for cache in caches], axis=1)
    cos, sin = caches[0].rotary.table(max(c.slot_table.tokens_seen for c in caches), device)
    whole = FeedTable(
        sequences=sequences,
        layers=torch.from_numpy(addresses.reshape(*heads.shape, -1)).to(device),
        cos=cos,
        sin=sin,
        rows=groups * rows,
        most_rows=max(counts),
        most_slots=0,
        slots=0,
        scored=any(cache.scores is not None for cache in caches),
    )
    return [
        replace(
            whole,
            sequences=sequences[layer],
            most_slots=int(heads[layer].max()),
            slots=int(heads[layer].sum()),
        )
        for layer in range(layers)
    ]
