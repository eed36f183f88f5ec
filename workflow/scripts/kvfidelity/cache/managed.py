"""The managed cache: a `transformers` cache whose positions are data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache import kernels
from kvfidelity.cache.attending import AttendingCache
from kvfidelity.cache.ledger import PositionMode, SlotLedger, as_grid
from kvfidelity.cache.mirror import PositionMirror
from kvfidelity.cache.rotary import IdentityRotary, rotate
from kvfidelity.cache.scores import ScoreBook
from kvfidelity.cache.store import SlotLayer


class ManagedCache(AttendingCache):
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
        self._continues = False
        self._fed: Tensor | None = None
        self._angles: tuple[Tensor, Tensor] | None = None
        self._mirror: PositionMirror | None = None

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

    @property
    def device(self) -> torch.device:
        """Where the slots are, once there are any."""
        device: torch.device = self.layers[0].device
        return device

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in one layer's new keys (un-rotated) and values, both [1, G, q, d].

        Returns:
            All rotated keys and all values of the layer, [1, G, n, d].
        """
        if layer_idx == 0:
            self._begin(key_states)
        layer = self.layers[layer_idx]
        layer.append(key_states, value_states, self._angles)
        return self.rotated_keys(layer_idx)[None], layer.live_values[None]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One layer's attention output [1, q, H, d] for un-rotated queries [1, H, q, d]."""
        layer_idx: int = module.layer_idx
        if self.query_tail:
            self._remember(layer_idx, query[0])
        self.scaling = scaling
        rotated = self._rotated_query(query[0])
        attention = _attention_of(query)
        out: Tensor
        if self.scores is None:
            out = attention.attend(rotated, key[0], value[0], scaling)
        else:
            out, sums = attention.attend_with_scores(rotated, key[0], value[0], scaling)
            self.scores.add(layer_idx, sums, continues=self._continues)
        return out.transpose(0, 1)[None]

    def rotated_keys(self, layer_idx: int) -> Tensor:
        """One layer's keys rotated by their slots' positions [G, n, d]."""
        layer = self.layers[layer_idx]
        if layer.has_workspace:
            rotated: Tensor = layer.rotated_keys
            return rotated
        return self._rotate_by(layer.live_keys, self.mirror.of_layer(layer_idx, layer.slots))

    @property
    def mirror(self) -> PositionMirror:
        """Positions on the device."""
        if self._mirror is None:
            self._mirror = PositionMirror(self.ledger.position, self.device)
        return self._mirror

    def reserve(self, slots: int) -> None:
        """Make room for so many slots, so that nothing moves in memory until they are filled."""
        for layer in self.layers:
            layer.reserve(slots)
        self.mirror.reserve(slots, self.size)
        if self.scores is not None and self.scores.available:
            self.scores.reserve(slots, self.scores.heads, self.device)

    def grown_in_place(self, count: int) -> None:
        """Note that decode steps on the device filled `count` more slots."""
        self.ledger.append(count)
        for layer in self.layers:
            layer.slots = self.size
        if self.scores is not None:
            self.scores.grown_in_place(self.size)

    @contextmanager
    def continuing(self) -> Iterator[None]:
        """What is fed here belongs to the latest forward, as a further chunk of it."""
        self._continues = True
        try:
            yield
        finally:
            self._continues = False

    @torch.inference_mode()
    def keep(self, kept: Tensor) -> None:
        """Evict all but `kept`: int64 [k], [L, k] or [L, G, k], sorted slots.

        Raises:
            ValueError: unsorted, repeated or out-of-range slots.
        """
        self.ledger.keep(kept)
        grid = as_grid(kept).to(self.device)
        if self.device.type == "cuda":
            self._compact(grid)
        else:
            for index, layer in enumerate(self.layers):
                rows = grid[index if grid.shape[0] > 1 else 0]
                layer.keep(rows[0] if rows.shape[0] == 1 else rows)
        if self.scores is not None:
            self.scores.keep(grid)
        if self._mirror is not None and self.ledger.mode is PositionMode.REROTATED:
            self._mirror.append(0, 0, self.size)  # the same for all layers and heads
        elif self._mirror is not None:
            self._mirror.replace(self.ledger.position)
        if self.ledger.mode is PositionMode.REROTATED and self.layers[0].has_workspace:
            cos, sin = self.rotary.angles(torch.arange(self.size), self.device)
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
        if self.before_forward is not None and not self._continues:
            self.before_forward(self)
        start, first, count = self.size, self.ledger.next_position, key.shape[2]
        positions = self.ledger.append(count)
        self._angles = None
        if key.is_cuda:
            if self._mirror is None:
                self._mirror = PositionMirror(self.ledger.position, key.device)
            self._mirror.append(start, first, count)
            self._fed = self._mirror.positions[0, :1, start : start + count]
        else:
            self._angles = self.rotary.angles(positions, key.device)

    def _compact(self, kept: Tensor) -> None:
        from kvfidelity.cache.gpu.compact import compact

        for name in ("key_buffer", "value_buffer"):
            compact([getattr(layer, name) for layer in self.layers], kept)
        for layer in self.layers:
            layer.slots = kept.shape[-1]

    def _rotated_query(self, query: Tensor) -> Tensor:
        if self._angles is not None:
            return rotate(query, *self._angles)
        assert self._fed is not None
        return self._rotate_by(query, self._fed)

    def _rotate_by(self, x: Tensor, position: Tensor) -> Tensor:
        from kvfidelity.cache.gpu.prefill import rotate_by

        cos, sin = self.rotary.table(self.ledger.tokens_seen, x.device)
        return rotate_by(x, position, cos, sin)

    def _remember(self, layer_idx: int, query: Tensor) -> None:
        tail = query[:, -self.query_tail :]
        before = self.tails[layer_idx]
        if before is not None and tail.shape[1] < self.query_tail:
            tail = torch.cat([before, tail], dim=1)[:, -self.query_tail :]
        self.tails[layer_idx] = tail.clone()


def _attention_of(query: Tensor) -> Any:
    """Where `attend` and `attend_with_scores` come from: the kernels of the query's device."""
    if query.is_cuda:
        from kvfidelity.cache.gpu import prefill

        return prefill
    return kernels
