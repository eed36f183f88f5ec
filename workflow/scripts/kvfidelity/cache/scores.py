"""How much attention each slot received, and how to boil that down to one number a slot."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from kvfidelity.cache.ledger import as_grid


class History(StrEnum):
    """Which queries a score counts: those of the latest forward, or all since the slot's token."""

    LATEST = "latest"
    ACCUMULATED = "accumulated"


class Over(StrEnum):
    """How heads, or layers, are combined."""

    MEAN = "mean"
    MAX = "max"
    SUM = "sum"


class ScoreBook:
    """Column sums of attention, fp32 [L, H, n], for the latest forward and accumulated.

    A slot's accumulated score counts every query since its own token; slots that survive an
    eviction keep theirs (H2O's and Scissorhands' bookkeeping).
    """

    def __init__(self, layers: int) -> None:
        self._latest: list[Tensor | None] = [None] * layers
        self._accumulated: list[Tensor | None] = [None] * layers

    @property
    def available(self) -> bool:
        """Whether a forward has been scored since the book was opened."""
        return self._latest[-1] is not None

    def add(self, layer: int, sums: Tensor) -> None:
        """Take one forward's column sums of one layer, fp32 [H, n] (n counts the new slots)."""
        self._latest[layer] = sums
        before = self._accumulated[layer]
        total = sums.clone()
        if before is not None:
            total[:, : before.shape[1]] += before
        self._accumulated[layer] = total

    def of(self, history: History | str) -> Tensor:
        """fp32 [L, H, n].

        Raises:
            LookupError: no forward has been scored.
        """
        rows = self._latest if History(history) is History.LATEST else self._accumulated
        if not self.available:
            raise LookupError("no attention scores: no forward has collected them yet")
        return torch.stack([row for row in rows if row is not None])

    def keep(self, layer: int, kept: Tensor) -> None:
        """Follow an eviction; `kept` is [k] or, per kv head, [G, k]."""
        for rows in (self._latest, self._accumulated):
            sums = rows[layer]
            if sums is None:
                continue
            if kept.dim() == 1:
                rows[layer] = sums.index_select(1, kept)
            else:
                ratio = sums.shape[0] // kept.shape[0]
                rows[layer] = sums.gather(1, kept.repeat_interleave(ratio, dim=0))

    def share_outside(self, kept: Tensor) -> float | None:
        """Share of the latest forward's attention that went to slots not in `kept` ([k], [L, k] or
        [L, G, k]); None before the first scored forward."""
        if not self.available:
            return None
        scores = self.of(History.LATEST)
        grid = as_grid(kept).to(scores.device)
        layers, heads, slots = scores.shape
        grouped = scores.view(layers, grid.shape[1], heads // grid.shape[1], slots).mean(2)
        inside = grouped.gather(-1, grid.expand(layers, -1, -1)).sum()
        return float(1 - inside / grouped.sum())

    def fork(self) -> ScoreBook:
        """An independent book; the tensors are shared, for `add` and `keep` replace them."""
        copy = ScoreBook(len(self._latest))
        copy._latest, copy._accumulated = list(self._latest), list(self._accumulated)
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        rows = [*self._latest, *self._accumulated]
        return sum(row.numel() * row.element_size() for row in rows if row is not None)


def combine(scores: Tensor, over: Over | str, dim: int) -> Tensor:
    """Reduce `scores` over `dim` by mean, max or sum."""
    over = Over(over)
    if over is Over.MEAN:
        return scores.mean(dim)
    return scores.amax(dim) if over is Over.MAX else scores.sum(dim)
