"""The latest queries of every layer, for policies that rank by them."""

from __future__ import annotations

import torch
from torch import Tensor


class RecentQueries:
    """The latest `window` queries, un-rotated, in rings: that of token t is at index t % window.

    Rings are one buffer [L, H, window, d] that never moves, so that kernels can write to it.

    Args:
        layers: number of decoder layers.
        window: how many queries are kept, at least 1.
    """

    def __init__(self, layers: int, window: int) -> None:
        self.window = window
        self._next = [0] * layers
        self._count = [0] * layers
        self._rings: Tensor | None = None

    @classmethod
    def from_latest(cls, queries: Tensor, window: int, tokens_seen: int) -> RecentQueries:
        """Rings that hold `queries` [L, H, m, d], those of the tokens before `tokens_seen`."""
        recent = cls(queries.shape[0], window)
        first = tokens_seen - queries.shape[2]
        for layer, rows in enumerate(queries):
            recent.add(layer, rows, first)
        return recent

    def __len__(self) -> int:
        """Number of queries of each layer, at most `window`."""
        return min(self._count[-1], self.window)

    @property
    def rings(self) -> Tensor | None:
        """[L, H, window, d]; None before the first query."""
        return self._rings

    def add(self, layer: int, queries: Tensor, first: int) -> None:
        """Add one layer's queries [H, q, d] of the tokens `first`, `first` + 1, ..."""
        heads, count, size = queries.shape
        rings = self.reserve(heads, size, queries.dtype, queries.device)
        kept = min(count, self.window)
        self._note(layer, first, count)
        end = (first + count) % self.window
        ring, latest = rings[layer], queries[:, count - kept :]
        start = (end - kept) % self.window
        before_wrap = min(kept, self.window - start)
        ring[:, start : start + before_wrap] = latest[:, :before_wrap]
        ring[:, : kept - before_wrap] = latest[:, before_wrap:]

    def reserve(self, heads: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The rings, allocated if they are not yet."""
        if self._rings is None:
            shape = (len(self._next), heads, self.window, size)
            self._rings = torch.zeros(shape, dtype=dtype, device=device)
        return self._rings

    def note_added(self, first: int, count: int) -> None:
        """Note that kernels wrote the queries of `count` tokens from `first` on, in all layers."""
        for layer in range(len(self._next)):
            self._note(layer, first, count)

    def of_layer(self, layer: int) -> Tensor | None:
        """One layer's queries [H, m, d], oldest first; None if there are none."""
        count = min(self._count[layer], self.window)
        if self._rings is None or not count:
            return None
        start = (self._next[layer] - count) % self.window
        ring = self._rings[layer]
        if start + count <= self.window:
            return ring[:, start : start + count]
        return torch.cat([ring[:, start:], ring[:, : start + count - self.window]], dim=1)

    def take_earlier(self, earlier: RecentQueries) -> None:
        """Take over the queries that were the latest before those that these rings hold."""
        if earlier.rings is None or self._rings is None:
            return
        count = len(self)
        missing = self.window - count
        if missing:
            first = self._next[-1] - count
            index = [token % self.window for token in range(first - missing, first)]
            self._rings[:, :, index] = earlier.rings[:, :, index]
        self._count = [before + count for before in earlier._count]

    def latest(self) -> Tensor | None:
        """All layers' queries [L, H, m, d], oldest first; None if there are none."""
        rows = [self.of_layer(layer) for layer in range(len(self._next))]
        present = [row for row in rows if row is not None]
        return torch.stack(present) if present else None

    def fork(self, window: int | None = None) -> RecentQueries:
        """An independent copy, of the latest `window` queries if given."""
        copy = RecentQueries(len(self._next), self.window if window is None else window)
        if copy.window != self.window:
            for layer in range(len(self._next)):
                if (queries := self.of_layer(layer)) is not None:
                    copy.add(layer, queries, self._next[layer] - queries.shape[1])
            return copy
        copy._next, copy._count = list(self._next), list(self._count)
        copy._rings = None if self._rings is None else self._rings.clone()
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self._rings is None else self._rings.numel() * self._rings.element_size()

    def _note(self, layer: int, first: int, count: int) -> None:
        # After a gap, which no feeding leaves, older queries would not be the latest ones.
        follows = first == self._next[layer]
        self._count[layer] = self._count[layer] + count if follows else count
        self._next[layer] = first + count
