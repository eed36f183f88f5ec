"""How far keys and values are from those that follow."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class LagKV(Policy):
    """Keeps, in each partition of `lag` slots, the keys and values that spread widest on the scale
    of the next partition, per kv head (LagKV, arXiv 2504.04704).

    A partition's keys, rotated, are scaled by the least and largest value of each feature in the
    next one; the softmax over the partition of the standard deviation over features is the score,
    and the mean of keys' and values' scores ranks. Only the order within a partition counts, so
    that all keep the same share. Sinks, the last whole partition and what follows it are kept, and
    a cache of fewer than two partitions keeps its latest slots. Defaults are those of kvpress
    0.5.5. Departures: a feature that is constant in the next partition is scaled by the smallest
    positive number, where the paper's formula is not finite; equal places in several partitions are
    kept from the earliest on.
    """

    kind: ClassVar[str] = "lagkv"
    keep_sets: ClassVar[str] = "head"

    lag: int = parameter(128, doc="slots of a partition", low=2)
    sinks: int = parameter(4, doc="first slots always kept", low=0)

    def priority(self, view: CacheView) -> Tensor:
        return torch.stack(
            [self._layer(layer.rotated_keys, layer.values, view.budget) for layer in view.layers]
        )

    def _layer(self, keys: Tensor, values: Tensor, budget: int) -> Tensor:
        groups, slots, _ = keys.shape
        whole = max(slots - self.sinks, 0) // self.lag
        if whole < 2:
            latest = torch.arange(slots, dtype=torch.float32, device=keys.device)
            return pin_ends(latest.repeat(groups, 1), self.sinks, 0, budget)
        stop = self.sinks + whole * self.lag
        shape = (groups, whole, self.lag, -1)
        score = self._scores(keys[:, self.sinks : stop].float().reshape(shape))
        score = score + self._scores(values[:, self.sinks : stop].float().reshape(shape))
        places = score.argsort(-1).argsort(-1).float() / self.lag
        rank = keys.new_zeros(groups, slots, dtype=torch.float32)
        places = places.masked_fill(score.isnan(), torch.nan)  # sorting would hide them
        rank[:, self.sinks : stop - self.lag] = places.flatten(1)
        return pin_ends(rank, self.sinks, slots - stop + self.lag, budget)

    def _scores(self, partitions: Tensor) -> Tensor:
        """Scores of all partitions but the last [G, p - 1, lag] of [G, p, lag, d]."""
        following = partitions[:, 1:]
        least = following.amin(2, keepdim=True)
        spread = following.amax(2, keepdim=True) - least
        scaled = (partitions[:, :-1] - least) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
        return scaled.std(-1).softmax(-1)
