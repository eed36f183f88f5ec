"""The managed cache: a `transformers` cache whose positions are data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kvfidelity.cache.kernels import attend, attend_with_scores
from kvfidelity.cache.ledger import PositionMode, SlotLedger, as_grid
from kvfidelity.cache.rotary import IdentityRotary, rotate
from kvfidelity.cache.scores import ScoreBook
from kvfidelity.cache.store import SlotLayer


class ManagedCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """Un-rotated keys and values, a position per slot, evicted from by `keep`.

    Pass it as a model's cache after `attach(model)`. One sequence (batch 1), no padding.

    Args:
        rotary: the attached model's rotary stand-in.
        layers: number of decoder layers.
        positions: how positions are handled after an eviction.
        collect_scores: whether each forward's attention column sums are kept.
        query_tail: how many of the latest queries to keep per layer, un-rotated, for policies that
            look through an observation window.
        before_forward: called with this cache before each forward takes in its tokens; a trigger
            that evicts inside `model.generate` goes here.
    """

    def __init__(
        self,
        rotary: IdentityRotary,
        layers: int,
        positions: PositionMode | str = PositionMode.REROTATED,
        *,
        collect_scores: bool = False,
        query_tail: int = 0,
        before_forward: Callable[[ManagedCache], None] | None = None,
    ) -> None:
        super().__init__(layers=[SlotLayer() for _ in range(layers)])
        self.rotary = rotary
        self.ledger = SlotLedger(PositionMode(positions))
        self.scores = ScoreBook(layers) if collect_scores else None
        self.query_tail = query_tail
        self.before_forward = before_forward
        self.tails: list[Tensor | None] = [None] * layers
        self.scaling = 1.0
        self._angles: tuple[Tensor, Tensor] | None = None

    @property
    def size(self) -> int:
        """Slots in use, the same in every layer."""
        return len(self.ledger)

    @property
    def nbytes(self) -> int:
        """Bytes of all live keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, evicted ones included: `generate` slices its input by this number."""
        return self.ledger.tokens_seen

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in one layer's new keys (un-rotated) and values, both [1, G, q, d].

        Returns:
            All rotated keys and all values of the layer, [1, G, n, d].
        """
        if layer_idx == 0:
            self._begin(key_states)
        assert self._angles is not None
        layer = self.layers[layer_idx]
        layer.append(key_states, value_states, *self._angles)
        return layer.rotated_keys[None], layer.live_values[None]

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One layer's attention output [1, H, q, d] for un-rotated queries of the same shape."""
        assert self._angles is not None
        if self.query_tail:
            self._remember(layer_idx, query[0])
        rotated = rotate(query[0], *self._angles)
        self.scaling = scaling
        if self.scores is None:
            return attend(rotated, key[0], value[0], scaling)[None]
        out, sums = attend_with_scores(rotated, key[0], value[0], scaling)
        self.scores.add(layer_idx, sums)
        return out[None]

    @torch.inference_mode()
    def keep(self, kept: Tensor) -> None:
        """Evict all but `kept`: int64 [k], [L, k] or [L, G, k], sorted slots.

        Raises:
            ValueError: unsorted, repeated or out-of-range slots.
        """
        self.ledger.keep(kept)
        grid = as_grid(kept)
        for index, layer in enumerate(self.layers):
            rows = grid[index if grid.shape[0] > 1 else 0].to(layer.device)
            rows = rows[0] if rows.shape[0] == 1 else rows
            layer.keep(rows)
            if self.scores is not None:
                self.scores.keep(index, rows)
        if self.ledger.mode is PositionMode.REROTATED:
            device = self.layers[0].device
            cos, sin = self.rotary.angles(torch.arange(self.size), device)
            for layer in self.layers:
                layer.rotate_again(cos, sin)

    def fork(
        self,
        slots: int | None = None,
        scores: ScoreBook | None = None,
        positions: PositionMode | str | None = None,
    ) -> ManagedCache:
        """An independent copy, or one of the first `slots` slots of a never evicted cache.

        Args:
            slots: how many slots; all by default.
            scores: the score book of that moment, needed when an earlier moment is forked.
            positions: another position mode; before the first eviction all modes are equal.
        """
        copy = ManagedCache(
            self.rotary,
            len(self.layers),
            self.ledger.mode,
            query_tail=self.query_tail,
            before_forward=self.before_forward,
        )
        copy.ledger = self.ledger.fork(slots)
        if positions is not None and not self.ledger.evictions:
            copy.ledger.mode = PositionMode(positions)
        copy.layers = [layer.fork(copy.size) for layer in self.layers]
        book = scores or (self.scores if slots in (None, self.size) else None)
        copy.scores = book.fork() if book is not None else None
        copy.tails = list(self.tails)
        copy.scaling = self.scaling
        return copy

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Feed something and forget it: slots, scores and query tails are then as they were.

        Raises:
            RuntimeError: slots were evicted meanwhile; what they held is gone.
        """
        ledger, scores, tail = self.ledger.fork(), self.scores, self.query_tail
        self.scores, self.query_tail = None, 0
        try:
            yield
            if self.ledger.evictions != ledger.evictions:
                raise RuntimeError("an eviction cannot be forgotten")
        finally:
            self.ledger, self.scores, self.query_tail = ledger, scores, tail
            for layer in self.layers:
                layer.slots = len(ledger)

    def _begin(self, key: Tensor) -> None:
        if key.shape[0] != 1:
            raise ValueError(f"a managed cache holds one sequence, not a batch of {key.shape[0]}")
        if self.before_forward is not None:
            self.before_forward(self)
        positions = self.ledger.append(key.shape[2])
        self._angles = self.rotary.angles(positions, key.device)

    def _remember(self, layer_idx: int, query: Tensor) -> None:
        tail = query[:, -self.query_tail :]
        before = self.tails[layer_idx]
        if before is not None and tail.shape[1] < self.query_tail:
            tail = torch.cat([before, tail], dim=1)[:, -self.query_tail :]
        self.tails[layer_idx] = tail.clone()
