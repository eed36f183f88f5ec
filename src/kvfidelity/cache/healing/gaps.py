"""Gaps of a keep set: maximal stretches of evicted slots."""

from __future__ import annotations

import torch
from torch import Tensor


def gaps_of(kept: Tensor, slots: int) -> Tensor:
    """The gaps of one keep set, sorted int64 [k], among `slots` slots: [gaps, 2], half-open."""
    edges = torch.cat([torch.tensor([-1]), kept.cpu(), torch.tensor([slots])])
    after = edges.diff() > 1
    return torch.stack([edges[:-1][after] + 1, edges[1:][after]], dim=1)


def largest(gaps: Tensor, count: int) -> Tensor:
    """The `count` largest gaps, in order; of two equals the earlier."""
    sizes = gaps[:, 1] - gaps[:, 0]
    return gaps[torch.sort(sizes, descending=True, stable=True).indices[:count].sort().values]


def rows_of(kept: Tensor) -> list[Tensor]:
    """Every keep set of [k], [L, k] or [L, G, k], int64 [k] each."""
    return list(kept.reshape(kept.shape[:-1].numel(), kept.shape[-1]))
