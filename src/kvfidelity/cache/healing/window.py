"""Attention of the latest queries at the moment of an eviction, for healings that weigh by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvfidelity.cache.rotary import rotate

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


def window_queries(cache: ManagedCache, layer: int, window: int) -> Tensor:
    """The latest w queries rotated by the positions right before the next one, fp32 [H, w, d]."""
    assert cache.recent_queries is not None
    latest = cache.recent_queries.of_layer(layer)
    assert latest is not None
    queries = latest[:, -min(window, cache.size) :].float()
    end = cache.slot_table.next_position
    positions = torch.arange(end - queries.shape[1], end)
    return rotate(queries, *cache.rotary.angles(positions, queries.device))


def window_logits(cache: ManagedCache, layer: int, queries: Tensor) -> Tensor:
    """Logits of `queries` [H, w, d] over all slots, minus infinity for later ones; fp32 [H, w, n].

    With the bias of slots that have one.
    """
    keys = cache.rotated_keys(layer).float()
    heads, window, size = queries.shape
    groups, slots, _ = keys.shape
    flat = (queries * cache.scaling).reshape(groups, -1, size)
    logits = (flat @ keys.transpose(1, 2)).view(heads, window, slots)
    if cache.changed_attention is not None:
        bias = cache.changed_attention.bias_of(layer, slots)
        if bias is not None:
            logits += bias[:, None]
    future = torch.ones(window, window, dtype=torch.bool, device=logits.device).triu_(1)
    logits[..., slots - window :].masked_fill_(future, -torch.inf)
    return logits
