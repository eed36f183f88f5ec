"""Managed caches on a GPU that one forward feeds together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from kvfidelity.cache.interface import AttentionCache, note_split
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton.feed import Workspace, feed_layer
from kvfidelity.cache.triton.feed_table import FeedTable, feed_table


class FedCaches(AttentionCache):
    """Takes part in one forward for all of `caches`; cache i gets `counts[i]` of its tokens.

    Each cache appends, rotates, attends and sums scores as if it were fed alone.
    """

    def __init__(self, caches: Sequence[ManagedCache], counts: Sequence[int]) -> None:
        super().__init__(layers=[])
        self._caches, self._counts = caches, counts
        self._forward: tuple[FeedTable, Workspace] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Nothing yet: the kernels append when they attend."""
        return key_states, value_states

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One attention module's output [1, sum(counts), H, d]."""
        if self._forward is None:
            self._forward = self._start(query, key, value, scaling)
        table, workspace = self._forward
        out: Tensor = feed_layer(table, module.layer_idx, workspace, query, key, value, scaling)
        return out

    def _start(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> tuple[FeedTable, Workspace]:
        """Append the tokens to each cache's slot table and make room for them in all layers."""
        for cache, count in zip(self._caches, self._counts, strict=True):
            cache.scaling = scaling
            cache.append_unfilled(count, query, key, value)
        table = feed_table(self._caches, self._counts)
        return table, Workspace(table, query, key.shape[1])

    def note_tokens(self, ids: Callable[[], list[int]]) -> None:
        """Give each cache its part of the tokens."""
        note_split(self._caches, self._counts, ids)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
