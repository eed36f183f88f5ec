"""Several managed caches behind one forward, in plain torch: the reference and the CPU path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache


class BatchCache(AttentionCache):
    """One cache per sequence of the batch: row b of every tensor belongs to `caches[b]`."""

    def __init__(self, caches: Sequence[ManagedCache]) -> None:
        super().__init__(layers=[])
        self.caches = caches
        self._new_states: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in one layer's new keys and values [B, G, q, d], one row for each cache."""
        self._new_states = [
            cache.update(key_states[index : index + 1], value_states[index : index + 1], layer_idx)
            for index, cache in enumerate(self.caches)
        ]
        return key_states, value_states

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        parts = [
            cache.attend(module, query[index : index + 1], *self._new_states[index], scaling)
            for index, cache in enumerate(self.caches)
        ]
        return torch.cat(parts)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
