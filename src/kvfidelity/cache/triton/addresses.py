"""Where a cache's buffers are in device memory, for kernels that serve several caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kvfidelity.cache.flat_layer import FlatLayer
from kvfidelity.cache.layers import SlotLayer
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton.layout import LayerField


def layer_rows(cache: ManagedCache) -> np.ndarray:
    """A row of LayerField for each layer, int64 [L, fields]; valid until a buffer grows."""
    layers = len(cache.layers)
    rows = np.zeros((layers, len(LayerField)), dtype=np.int64)
    rows[:, LayerField.KEYS] = [layer.key_buffer.data_ptr() for layer in cache.layers]
    rows[:, LayerField.VALUES] = [layer.value_buffer.data_ptr() for layer in cache.layers]
    rows[:, LayerField.POSITIONS] = _of_layers(cache.device_positions.positions, layers)
    if cache.scores is not None and cache.scores.buffers is not None:
        latest, accumulated = cache.scores.buffers
        rows[:, LayerField.LATEST_SCORES] = _of_layers(latest, layers)
        rows[:, LayerField.ACCUMULATED_SCORES] = _of_layers(accumulated, layers)
    if cache.recent_queries is not None and cache.recent_queries.rings is not None:
        rows[:, LayerField.QUERY_RING] = _of_layers(cache.recent_queries.rings, layers)
    return rows


def ring_size_of(cache: ManagedCache) -> int:
    """Queries that the rings of the latest queries hold; 0 without rings."""
    recent = cache.recent_queries
    return recent.window if recent is not None and recent.rings is not None else 0


def positions_stride(cache: ManagedCache) -> int:
    """Elements from one kv head's positions to the next one's; 0 if all heads share them."""
    positions = cache.device_positions.positions
    return positions.stride(1) if positions.shape[1] > 1 else 0


def _of_layers(buffer: Tensor, layers: int) -> np.ndarray:
    """Each layer's address in a buffer [L, ...], or [1, ...] if all layers share it."""
    step = buffer.stride(0) * buffer.element_size() if buffer.shape[0] > 1 else 0
    addresses: np.ndarray = buffer.data_ptr() + step * np.arange(layers, dtype=np.int64)
    return addresses


def head_addresses(layers: Sequence[SlotLayer | FlatLayer]) -> np.ndarray:
    """Addresses of each kv head's first key and first value, int64 [2, L, G].

    All layers are of one type.
    """
    buffers = [(layer.key_buffer, layer.value_buffer) for layer in layers]
    pointers = np.array([[part.data_ptr() for part in pair] for pair in buffers], dtype=np.int64)
    steps = np.array([part.shape[-1] * part.element_size() for part in buffers[0]])
    if isinstance(layers[0], FlatLayer):
        firsts = np.array([layer.starts for layer in layers], dtype=np.int64)
    else:
        groups = np.arange(buffers[0][0].shape[1], dtype=np.int64)
        firsts = np.array([[layer.capacity] for layer in layers]) * groups
    addresses: np.ndarray = pointers.T[..., None] + steps[:, None, None] * firsts
    return addresses


def head_rows(cache: ManagedCache) -> np.ndarray:
    """A row of LayerField for each kv head, int64 [L, G, fields], as if it were a cache alone.

    Of any cache. Valid until a buffer grows, or the cache becomes ragged.
    """
    heads = head_addresses(cache.layers)
    rows = np.zeros((*heads.shape[1:], len(LayerField)), dtype=np.int64)
    rows[..., LayerField.KEYS], rows[..., LayerField.VALUES] = heads
    layers, groups = heads.shape[1:]
    rows[..., LayerField.POSITIONS] = _of_heads(cache.position_buffer, layers, groups)
    if cache.scores is not None and cache.scores.buffers is not None:
        pads = cache.slot_table.pad.expand(layers, groups).numpy()  # rows are aligned at the right
        fields = (LayerField.LATEST_SCORES, LayerField.ACCUMULATED_SCORES)
        for field, buffer in zip(fields, cache.scores.buffers, strict=True):
            first = _of_heads(buffer, layers, groups)
            rows[..., field] = first + pads * buffer.element_size()
    if cache.recent_queries is not None and cache.recent_queries.rings is not None:
        rows[..., LayerField.QUERY_RING] = _of_heads(cache.recent_queries.rings, layers, groups)
    return rows


def _of_heads(buffer: Tensor, layers: int, groups: int) -> np.ndarray:
    """Each kv head's address [L, G] in a buffer [L, heads, ...]: of its first query head, if it has
    a row for each of these. Layers or heads that share a row have size 1."""
    step = buffer.stride(1) * (buffer.shape[1] // groups) if buffer.shape[1] > 1 else 0
    within = step * buffer.element_size() * np.arange(groups, dtype=np.int64)
    addresses: np.ndarray = _of_layers(buffer, layers)[..., None] + within
    return addresses
