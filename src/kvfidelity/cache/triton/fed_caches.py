"""Managed caches on a GPU that one forward feeds together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton.feed import feed
from kvfidelity.cache.triton.feed_table import FeedTable, feed_table


class FedCaches(AttentionCache):
    """Takes part in one forward for all of `caches`; cache i gets `counts[i]` of its tokens.

    Each cache appends, rotates, attends and sums scores as if it were fed alone.
    """

    def __init__(self, caches: Sequence[ManagedCache], counts: Sequence[int]) -> None:
        super().__init__(layers=[])
        self._caches, self._counts = caches, counts
        self._table: FeedTable | None = None

    @property
    def fed_before(self) -> bool:
        """Whether every cache knows the shapes of its buffers, so that `start` is possible."""
        return all(cache.layers[0].is_initialized for cache in self._caches)

    def start(self, heads: int) -> list[Tensor]:
        """Append the tokens to each cache's slot table and make room for them in all layers.

        Otherwise the forward's first layer does it, where nothing can be compiled.

        Args:
            heads: query heads of a layer.

        Returns:
            Of each layer its rows of LayerField, int64 [B, fields], which a compiled layer finds as
            `self_attn.feed_rows`.
        """
        keys = self._caches[0].layers[0].key_buffer
        query = keys.new_empty(1, heads, 0, keys.shape[-1])
        table = self._start(query, keys[:, :, :0], keys[:, :, :0], self._caches[0].scaling)
        rows = list(table.layers)
        for constant in (table.sequences, *rows, table.cos, table.sin):
            # Or compiled code expects that any two sizes that were equal once always are.
            torch._dynamo.mark_static(constant, 1)
        return rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Nothing yet: the kernels append when they attend."""
        return key_states, value_states

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One attention module's output [1, sum(counts), H, d]."""
        table = self._table or self._start(query, key, value, scaling)
        # A layer's number would be a constant of compiled code, and each layer have its own.
        compiling = torch.compiler.is_compiling()
        out: Tensor = feed(
            query,
            key,
            value,
            table.sequences,
            module.feed_rows if compiling else table.layers[module.layer_idx],
            table.cos,
            table.sin,
            table.most_rows,
            table.most_slots,
            table.slots,
            table.scored,
            scaling,
        )
        return out

    def _start(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> FeedTable:
        for cache, count in zip(self._caches, self._counts, strict=True):
            cache.scaling = scaling
            cache.append_unfilled(count, query, key, value)
        self._table = feed_table(self._caches, self._counts)
        return self._table

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
