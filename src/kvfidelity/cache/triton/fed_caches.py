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
from kvfidelity.cache.triton.head_feed import feed_by_head, head_feed_table


class FedCaches(AttentionCache):
    """Takes part in one forward for all of `caches`; cache i gets `counts[i]` of its tokens.

    Each cache appends, rotates, attends and sums scores as if it were fed alone.
    """

    def __init__(self, caches: Sequence[ManagedCache], counts: Sequence[int]) -> None:
        super().__init__(layers=[])
        self._caches, self._counts = caches, counts
        self._table: FeedTable | None = None
        self._by_head = False

    @property
    def ragged(self) -> bool:
        """Whether kv heads of one of the caches may hold different numbers of slots."""
        return any(cache.ragged is not None for cache in self._caches)

    @property
    def can_start(self) -> bool:
        """Whether every cache knows the shapes of its buffers, and no eviction changes them."""
        return all(
            cache.layers[0].is_initialized and cache.before_forward is None
            for cache in self._caches
        )

    def start(self, attentions: Sequence[Any], heads: int, groups: int) -> None:
        """Append the tokens to each cache's slot table and make room for them in all layers.

        Otherwise the forward's first layer does it, where nothing can be compiled. A compiled layer
        finds its rows in `feed_rows` (and in `feed_sequences`, of ragged caches) of its attention
        module.

        Args:
            heads, groups: query heads and kv heads of a layer.
        """
        keys = self._caches[0].layers[0].key_buffer
        query, key = (keys.new_empty(1, number, 0, keys.shape[-1]) for number in (heads, groups))
        table = self._start(query, key, key, self._caches[0].scaling)
        rows = list(table.layers)
        constants = [table.sequences, *rows, table.cos, table.sin]
        if self._by_head:
            for module, own in zip(attentions, table.sequences, strict=True):
                module.feed_sequences = own
                constants.append(own)
        for constant in constants:
            # Or compiled code expects that any two sizes that were equal once always are.
            torch._dynamo.mark_static(constant, 1)
        for module, own in zip(attentions, rows, strict=True):
            module.feed_rows = own

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
        rows = module.feed_rows if compiling else table.layers[module.layer_idx]
        if self._by_head:
            sequences = module.feed_sequences if compiling else table.sequences[module.layer_idx]
            return feed_by_head(query, key, value, sequences, rows, table, scaling)
        out: Tensor = feed(
            query,
            key,
            value,
            table.sequences,
            rows,
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
        self._by_head = self.ragged
        if self._by_head:
            self._table = head_feed_table(self._caches, self._counts, key.shape[1])
        else:
            self._table = feed_table(self._caches, self._counts)
        return self._table

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
