"""How much attention each slot received, and how to reduce it to one number per slot."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from kvfidelity.cache.capacity import grown_capacity
from kvfidelity.cache.slots import as_grid


class NotCollectedError(LookupError):
    """A policy looks at something that its cache does not collect, or not yet."""


class ScoreHistory(StrEnum):
    """Which queries a score counts.

    LATEST: those of the prompt if nothing was fed after it, else the last token's.
    ACCUMULATED: all since the slot's own token.
    """

    LATEST = "latest"
    ACCUMULATED = "accumulated"


class Reduction(StrEnum):
    """How heads, or layers, are combined."""

    MEAN = "mean"
    MAX = "max"
    SUM = "sum"


class AttentionScores:
    """Column sums of attention, fp32 [L, H, n], for the latest forward and accumulated.

    A slot's accumulated score counts every query since its own token; slots that survive an
    eviction keep theirs (H2O's and Scissorhands' bookkeeping). Buffers are [L, H, capacity] and
    grow by half, so that a decode step can write them in place.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._slots = [0] * layers
        self._latest: Tensor | None = None
        self._accumulated: Tensor | None = None

    @classmethod
    def from_rows(cls, latest: Tensor, accumulated: Tensor) -> AttentionScores:
        """Scores with these rows, fp32 [L, H, n] each, which are not copied."""
        scores = cls(latest.shape[0])
        scores._latest, scores._accumulated = latest, accumulated
        scores._slots = [latest.shape[-1]] * latest.shape[0]
        return scores

    @property
    def available(self) -> bool:
        """Whether a forward has been scored."""
        return self._slots[-1] > 0

    @property
    def capacity(self) -> int:
        """Number of slots that a row has room for."""
        return 0 if self._latest is None else self._latest.shape[-1]

    @property
    def heads(self) -> int:
        """H; 0 before the first scored forward."""
        return 0 if self._latest is None else self._latest.shape[1]

    def add(
        self,
        layer: int,
        sums: Tensor,
        *,
        continues: bool = False,
        last: Tensor | None = None,
    ) -> None:
        """Add one forward's column sums of one layer, fp32 [H, n] (n counts the new slots).

        Args:
            continues: the forward is a further chunk of the latest one; sums are added to its sums.
            last: what the last token alone gave, fp32 [H, n]; the latest scores are then these.
        """
        heads, slots = sums.shape
        before = self._slots[layer]
        self.reserve(slots, heads, sums.device)
        assert self._latest is not None and self._accumulated is not None
        latest, total = self._latest[layer], self._accumulated[layer]
        if last is not None:
            latest[:, :slots] = last
        elif continues:
            latest[:, :before] += sums[:, :before]
            latest[:, before:slots] = sums[:, before:]
        else:
            latest[:, :slots] = sums
        total[:, :before] += sums[:, :before]
        total[:, before:slots] = sums[:, before:]
        self._slots[layer] = slots

    def rows(self, history: ScoreHistory | str) -> Tensor:
        """fp32 [L, H, n], a view: do not write to it.

        Raises:
            NotCollectedError: no forward has been scored.
        """
        rows = self._latest if ScoreHistory(history) is ScoreHistory.LATEST else self._accumulated
        if rows is None or not self.available:
            raise NotCollectedError(
                "no attention scores yet; a policy can wait for them with `should_evict`"
            )
        return rows[..., : self._slots[-1]]

    def keep(self, kept: Tensor) -> None:
        """Follow an eviction; `kept` is [L', G', k] slots on the scores' device."""
        size = kept.shape[-1]
        for rows in (self._latest, self._accumulated):
            if rows is None or not self.available:
                continue
            live = rows[..., : self._slots[-1]]
            if kept.shape[:2] == (1, 1):
                survivors = live.index_select(-1, kept[0, 0])
            else:
                index = kept.repeat_interleave(live.shape[1] // kept.shape[1], dim=1)
                survivors = live.gather(-1, index.expand(self._layers, -1, -1))
            rows[..., :size] = survivors
        self._slots = [size if slots else 0 for slots in self._slots]

    def keep_columns(self, columns: Tensor) -> None:
        """Follow a ragged eviction.

        Rows stay aligned at the right: the first columns of a head with fewer slots are 0.

        Args:
            columns: int64 [L, G, k], columns now, -1 where a head has fewer slots.
        """
        if self._latest is None or self._accumulated is None or not self.available:
            return
        width, live = columns.shape[-1], self._slots[-1]
        layers, groups, _ = columns.shape
        known, empty = columns.clamp(min=0)[:, :, None], (columns < 0)[:, :, None]
        for rows in (self._latest, self._accumulated):
            # Query heads of a kv head share its columns.
            by_head = rows.view(layers, groups, -1, rows.shape[-1])
            index = known.expand(-1, -1, by_head.shape[2], -1)
            survivors = by_head[..., :live].gather(-1, index)
            by_head[..., :width] = survivors.masked_fill_(empty, 0)
        self._slots = [width] * self._layers

    def share_outside_columns(self, columns: Tensor) -> float | None:
        """`share_outside` of a ragged keep set's columns, as in `keep_columns`."""
        if not self.available:
            return None
        scores = self.rows(ScoreHistory.LATEST)
        layers, groups, _ = columns.shape
        by_head = scores.view(layers, groups, -1, scores.shape[-1]).sum(2)
        inside = by_head.gather(-1, columns.clamp(min=0)).masked_fill(columns < 0, 0).sum()
        share = float(1 - inside / scores.sum())
        return share if math.isfinite(share) else None

    def add_earlier(self, earlier: AttentionScores) -> None:
        """Add what slots had received before, fp32 [L, H, m], m <= n, to the accumulated scores."""
        before = earlier.rows(ScoreHistory.ACCUMULATED)
        self.rows(ScoreHistory.ACCUMULATED)[..., : before.shape[-1]] += before

    def share_outside(self, kept: Tensor) -> float | None:
        """Share of the latest forward's attention that went to slots not in `kept` ([k], [L, k] or
        [L, G, k]); None before the first scored forward, and where scores overflowed."""
        if not self.available:
            return None
        scores = self.rows(ScoreHistory.LATEST)
        grid = as_grid(kept).to(scores.device)
        layers, heads, slots = scores.shape
        grouped = scores.view(layers, grid.shape[1], heads // grid.shape[1], slots).mean(2)
        inside = grouped.gather(-1, grid.expand(layers, -1, -1)).sum()
        share = float(1 - inside / grouped.sum())
        return share if math.isfinite(share) else None

    def of_head(
        self, layer: int, group: int, groups: int, slots: int | None = None
    ) -> AttentionScores:
        """The scores of the query heads of one of `groups` kv heads, as of a cache of one layer.

        Args:
            slots: how many slots the head has, the last columns; all columns by default.
        """
        if not self.available:
            return AttentionScores(1)
        width, ratio = self._slots[-1], self.heads // groups
        first = 0 if slots is None else width - slots
        own = slice(group * ratio, (group + 1) * ratio)
        latest, accumulated = (
            self.rows(history)[layer : layer + 1, own, first:]
            for history in (ScoreHistory.LATEST, ScoreHistory.ACCUMULATED)
        )
        return AttentionScores.from_rows(latest, accumulated)

    def reserve(self, slots: int, heads: int, device: torch.device) -> None:
        """Make room for rows of `slots` slots."""
        if slots <= self.capacity:
            return
        wanted = grown_capacity(slots, self.capacity)
        used = max(self._slots)
        for name in ("_latest", "_accumulated"):
            old: Tensor | None = getattr(self, name)
            grown = torch.empty(self._layers, heads, wanted, dtype=torch.float32, device=device)
            if old is not None:
                grown[..., :used] = old[..., :used]
            setattr(self, name, grown)

    @property
    def buffers(self) -> tuple[Tensor, Tensor] | None:
        """Latest and accumulated rows with free slots at the end, fp32 [L, H, capacity] each;
        None before the first `reserve`."""
        if self._latest is None or self._accumulated is None:
            return None
        return self._latest, self._accumulated

    def note_decoded(self, slots: int) -> None:
        """Note that decode steps filled the rows up to `slots`."""
        self._slots = [slots] * self._layers

    def fork(self) -> AttentionScores:
        """An independent copy."""
        copy = AttentionScores(self._layers)
        if self._latest is not None and self._accumulated is not None:
            used = max(self._slots)
            copy._slots = list(self._slots)
            copy._latest = self._latest[..., :used].clone()
            copy._accumulated = self._accumulated[..., :used].clone()
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        rows = (self._latest, self._accumulated)
        return sum(row.numel() * row.element_size() for row in rows if row is not None)


def combine(scores: Tensor, over: Reduction | str, dim: int) -> Tensor:
    """Reduce `scores` over `dim` by mean, max or sum."""
    over = Reduction(over)
    if over is Reduction.MEAN:
        return scores.mean(dim)
    return scores.amax(dim) if over is Reduction.MAX else scores.sum(dim)
