"""The caches that one forward feeds, as numbers on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton.addresses import layer_rows, positions_stride, ring_size_of
from kvfidelity.cache.triton.layout import FeedField, row


@dataclass(frozen=True)
class FeedTable:
    """What the kernels of `feed` need to know about the caches of one forward.

    sequences: int64 [B, fields], a row of FeedField for each cache. layers: int64 [L, B, fields],
    a row of LayerField for each layer and cache. cos, sin: fp32 [P, r / 2] for all positions in
    use. rows: new tokens of all caches. most_rows, most_slots: of the cache with the most, new
    tokens, and slots with the new ones. slots: of all caches, with the new ones. scored: whether
    any cache collects scores.
    """

    sequences: Tensor
    layers: Tensor
    cos: Tensor
    sin: Tensor
    rows: int
    most_rows: int
    most_slots: int
    slots: int
    scored: bool


def feed_table(caches: Sequence[ManagedCache], counts: Sequence[int]) -> FeedTable:
    """The table of a forward that has appended `counts[i]` tokens to the slot table of cache i.

    Buffers must have room for them, and must not move until the forward has ended.
    """
    device, first_row, first_slot, sequences = caches[0].device, 0, 0, []
    for cache, count in zip(caches, counts, strict=True):
        table = cache.slot_table
        sequences.append(
            row(
                FeedField,
                {
                    FeedField.SLOTS: cache.size - count,
                    FeedField.COUNT: count,
                    FeedField.FIRST_ROW: first_row,
                    FeedField.FIRST_SLOT: first_slot,
                    FeedField.FIRST_TOKEN: table.tokens_seen - count,
                    FeedField.FIRST_POSITION: table.next_position - count,
                    FeedField.CAPACITY: cache.layers[0].capacity,
                    FeedField.POSITIONS_STRIDE: positions_stride(cache),
                    FeedField.SCORES_CAPACITY: cache.scores.capacity if cache.scores else 0,
                    FeedField.CONTINUES: int(cache.continues),
                    FeedField.RING_SIZE: ring_size_of(cache),
                    FeedField.LATEST_IS_LAST: int(cache.latest_is_last),
                },
            )
        )
        first_row, first_slot = first_row + count, first_slot + cache.size
    bound = max(cache.slot_table.position_bound for cache in caches)
    cos, sin = caches[0].rotary.table(bound, device)
    layers = np.stack([layer_rows(cache) for cache in caches], axis=1)
    return FeedTable(
        sequences=torch.tensor(sequences, device=device),
        layers=torch.from_numpy(layers).to(device),
        cos=cos,
        sin=sin,
        rows=first_row,
        most_rows=max(counts),
        most_slots=max(cache.size for cache in caches),
        slots=first_slot,
        scored=any(cache.scores is not None for cache in caches),
    )
