"""Attention with scaled logits and a bias per slot, in plain torch on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Scores per tile, as in `cache.attention`.
TILE_ELEMENTS = 2_300_000


@dataclass(frozen=True)
class ChangedAttention:
    """What attention adds to its logits: softmax(factor * scaling * q k + bias).

    bias: fp32 [L, H, m] of the first m slots; later ones have none. None for no bias.
    counts: fp32 [L, G, m], how many tokens each of these slots stands for; later ones for one.
    ghosts: bool [L, G, m], which of them are ghosts, of one token too; later ones are not.
    """

    factor: float = 1.0
    bias: Tensor | None = None
    counts: Tensor | None = None
    ghosts: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the biases and counts that say something: those of ghosts."""
        if self.bias is None or self.ghosts is None:
            return 0
        ratio = self.bias.shape[1] // self.ghosts.shape[1]
        return int(self.ghosts.sum()) * (ratio + 1) * self.bias.element_size()

    @property
    def ghosts_per_head(self) -> float:
        """Ghosts of a kv head, the mean over all."""
        return 0.0 if self.ghosts is None else float(self.ghosts.float().sum(-1).mean())

    def keep(self, kept: Tensor) -> ChangedAttention:
        """That of the slots in `kept`, int64 [L', G', k], after an eviction."""
        return replace(
            self,
            bias=None if self.bias is None else _kept(self.bias, kept, 0),
            counts=None if self.counts is None else _kept(self.counts, kept, 1),
            ghosts=None if self.ghosts is None else _kept(self.ghosts, kept, False),
        )

    def fork(self) -> ChangedAttention:
        """An independent copy."""
        return replace(
            self,
            bias=None if self.bias is None else self.bias.clone(),
            counts=None if self.counts is None else self.counts.clone(),
            ghosts=None if self.ghosts is None else self.ghosts.clone(),
        )

    def counts_of(self, layer: int, groups: int, slots: int) -> Tensor:
        """How many tokens one layer's slots stand for, fp32 [G, n]."""
        if self.counts is None:
            return torch.ones(groups, slots)
        row = self.counts[layer, :, :slots]
        return pad(row, (0, slots - row.shape[1]), value=1.0)

    def ghosts_of(self, layer: int, groups: int, slots: int) -> Tensor:
        """Which of one layer's slots are ghosts, bool [G, n]."""
        if self.ghosts is None:
            return torch.zeros(groups, slots, dtype=torch.bool)
        row = self.ghosts[layer, :, :slots]
        return pad(row, (0, slots - row.shape[1]), value=False)

    def bias_of(self, layer: int, slots: int) -> Tensor | None:
        """One layer's bias of `slots` slots, fp32 [H, n]; None for no bias."""
        if self.bias is None:
            return None
        row = self.bias[layer, :, :slots]
        return pad(row, (0, slots - row.shape[1]))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Causal attention, as `cache.attention.attend_with_scores` otherwise.

        Args:
            query: [H, q, d], rotated; the last q slots are theirs.
            key, value: [G, n, d], keys rotated.

        Returns:
            The output [H, q, d]; fp32 sums over queries of what each slot received [H, n]; the
            same of the last query alone.
        """
        heads, new, size = query.shape
        groups, slots, _ = key.shape
        ratio = heads // groups
        bias = self.bias_of(layer, slots)
        grouped = query.reshape(groups, ratio, new, size)
        out = torch.empty_like(grouped)
        sums = torch.zeros(groups, ratio, slots, dtype=torch.float32, device=query.device)
        last = torch.zeros_like(sums)
        tile = max(16, min(256, TILE_ELEMENTS // (heads * slots)))
        for start in range(0, new, tile):
            stop = min(start + tile, new)
            rows, seen = stop - start, slots - new + stop
            tiled = grouped[:, :, start:stop].reshape(groups, ratio * rows, size)
            logits = (tiled * (scaling * self.factor)) @ key[:, :seen].transpose(1, 2)
            logits = logits.view(groups, ratio, rows, seen).float()
            if bias is not None:
                logits += bias[:, :seen].view(groups, ratio, 1, seen)
            future = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu_(1)
            logits[..., seen - rows :].masked_fill_(future, -torch.inf)
            weights = torch.softmax(logits, dim=-1)
            sums[..., :seen] += weights.sum(2)
            last[..., :seen] = weights[:, :, -1]
            mixed = weights.view(groups, ratio * rows, seen).to(value.dtype) @ value[:, :seen]
            out[:, :, start:stop] = mixed.view(groups, ratio, rows, size)
        return out.view(heads, new, size), sums.view(heads, slots), last.view(heads, slots)


def _kept(rows: Tensor, kept: Tensor, beyond: float) -> Tensor:
    """The columns `kept`, int64 [L', G', k], of [L, R, m]; `beyond` where they are past m."""
    layers, number, known = rows.shape
    index = kept.to(rows.device).expand(layers, -1, -1)
    index = index.repeat_interleave(number // index.shape[1], dim=1)
    found = rows.gather(-1, index.clamp(max=known - 1))
    return found.masked_fill(index >= known, beyond)
