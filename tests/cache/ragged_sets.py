"""Random ragged keep sets for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfidelity.cache.ragged import RaggedKeepSet, apportion


def random_ragged(counts: Tensor, per_head: int, seed: int) -> RaggedKeepSet:
    """`per_head` slots on average of heads that hold `counts` [L, G], drawn at random."""
    draws = torch.Generator().manual_seed(seed)
    shares = torch.rand(counts.shape, generator=draws) ** 2
    low = counts.clamp(max=1)
    kept = apportion(shares, per_head * counts.numel(), low, counts)
    rows = [
        [torch.randperm(n, generator=draws)[:k].sort().values for n, k in zip(*pair, strict=True)]
        for pair in zip(counts.tolist(), kept.tolist(), strict=True)
    ]
    return RaggedKeepSet.of_rows(rows)


def ends(counts: Tensor, kept: Tensor, *, last: bool) -> RaggedKeepSet:
    """The first, or the last, `kept` [L, G] slots of each head."""
    return RaggedKeepSet.of_rows(
        [
            [
                torch.arange(n - k, n) if last else torch.arange(k)
                for n, k in zip(*pair, strict=True)
            ]
            for pair in zip(counts.tolist(), kept.tolist(), strict=True)
        ]
    )
