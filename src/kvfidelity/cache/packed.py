"""Several sequences in one forward: their tokens stand one after another in a single row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, TypeGuard

import torch
from torch import Tensor

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton import kernels_run_on


def packed(caches: Sequence[AttentionCache], counts: Sequence[int]) -> AttentionCache:
    """The cache argument of one forward of several caches' tokens, `counts[i]` of cache i.

    On a GPU, managed caches at the beginning share their kernels' launches.
    """
    if len(caches) == 1:
        return caches[0]
    together = list(takewhile(_has_kernels, caches))
    if len(together) > 1:
        from kvfidelity.cache.triton.fed_caches import FedCaches

        number = len(together)
        first: AttentionCache = FedCaches(together, counts[:number])
        if number == len(caches):
            return first
        caches = [first, *caches[number:]]
        counts = [sum(counts[:number]), *counts[number:]]
    return PackedCache(caches, counts)


def _has_kernels(cache: AttentionCache) -> TypeGuard[ManagedCache]:
    return (
        isinstance(cache, ManagedCache)
        and kernels_run_on(cache.rotary.device)
        and cache.changed_attention is None
    )


class PackedCache(AttentionCache):
    """One cache per sequence; tensors are cut along the tokens, `counts[i]` of them for cache i.

    Everything but attention (projections, MLP, norms) is computed for all tokens at once. Each
    cache appends its own tokens, rotates by its own positions, attends to its own slots and sums
    its own scores, so the sequences may differ in length, slots, position mode and policy.

    Args:
        caches: each takes part with batch 1.
        counts: tokens of each cache in this forward, at least 1.
    """

    def __init__(self, caches: Sequence[AttentionCache], counts: Sequence[int]) -> None:
        super().__init__(layers=[])
        self._caches, self._counts = caches, list(counts)
        self._states: list[tuple[Tensor, Tensor]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Give each cache its part of one layer's new keys and values [1, G, sum(counts), d]."""
        parts = zip(
            self._caches,
            torch.split(key_states, self._counts, dim=2),
            torch.split(value_states, self._counts, dim=2),
            strict=True,
        )
        self._states = [cache.update(key, value, layer_idx) for cache, key, value in parts]
        return key_states, value_states

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One attention module's output [1, sum(counts), H, d]."""
        queries = torch.split(query, self._counts, dim=2)
        parts = [
            cache.attend(module, part, *states, scaling)
            for cache, part, states in zip(self._caches, queries, self._states, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
