"""Where a cache's buffers are in device memory, for kernels that serve several caches."""

from __future__ import annotations

import numpy as np
from torch import Tensor

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
