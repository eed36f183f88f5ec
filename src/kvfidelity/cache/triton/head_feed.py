"""One forward of caches of which some hold different numbers of slots in their kv heads.

The kernels of `feed` then see each kv head as a separate cache: of one kv head, with the query
heads of that one, and with lengths, positions and addresses that differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.ragged import upload
from kvfidelity.cache.triton.addresses import head_rows, ring_size_of
from kvfidelity.cache.triton.feed import feed
from kvfidelity.cache.triton.feed_table import FeedTable
from kvfidelity.cache.triton.layout import FeedField


def feed_by_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Tensor,
    layer_rows: Tensor,
    table: FeedTable,
    scaling: float,
) -> Tensor:
    """`feed` of one layer, [1, R, H, d] of [1, H, R, d] and [1, G, R, d].

    Args:
        sequences, layer_rows: int64 [B * G, fields], the layer's of the table.
    """
    _, heads, rows, size = query.shape
    groups = key.shape[1]
    out: Tensor = feed(
        _by_head(query, groups),
        _by_head(key, groups),
        _by_head(value, groups),
        sequences,
        layer_rows,
        table.cos,
        table.sin,
        table.most_rows,
        table.most_slots,
        table.slots,
        table.scored,
        scaling,
    )
    by_head = out.view(groups, rows, heads // groups, size)
    return by_head.transpose(0, 1).reshape(1, rows, heads, size)


def _by_head(states: Tensor, groups: int) -> Tensor:
    """[1, heads, R, d] as [1, heads / G, G * R, d]: one kv head's rows after another's."""
    _, heads, rows, size = states.shape
    parts = states.view(groups, heads // groups, rows, size).transpose(0, 1)
    return parts.reshape(1, heads // groups, groups * rows, size)


def head_feed_table(
    caches: Sequence[ManagedCache], counts: Sequence[int], groups: int
) -> FeedTable:
    """The table of a forward, see `feed_table`, in which each kv head of a cache is a cache.

    `sequences` is int64 [L, B * G, fields], because lengths differ from layer to layer; `layers` is
    [L, B * G, fields], and `most_slots` and `slots` are those of the layer with the most.
    """
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
    sequences = upload(torch.from_numpy(fields).view(*heads.shape, -1), device)
    addresses = np.stack([head_rows(cache) for cache in caches], axis=1)
    cos, sin = caches[0].rotary.table(max(c.slot_table.position_bound for c in caches), device)
    return FeedTable(
        sequences=sequences,
        layers=upload(torch.from_numpy(addresses.reshape(*heads.shape, -1)), device),
        cos=cos,
        sin=sin,
        rows=groups * rows,
        most_rows=max(counts),
        most_slots=int(heads.max()),
        slots=int(heads.sum(1).max()),
        scored=any(cache.scores is not None for cache in caches),
    )
