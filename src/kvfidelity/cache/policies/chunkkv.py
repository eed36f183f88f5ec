"""Whole chunks of neighbouring slots."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvfidelity.cache.policies.base import parameter, pinned
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class ChunkKV(PolicyWrapper):
    """Keeps whole chunks of slots, those whose mean rank by another policy is highest, one keep set
    per layer (ChunkKV, arXiv 2502.00299).

    As in kvpress 0.5.5, a chunk's rank is the mean over its slots of the sum over kv heads, and a
    shorter chunk at the end counts like any other. Departures: the budget is kept exactly, so the
    last chunk that does not fit is kept up to its first slots that do (kvpress drops it); slots
    that the other policy pins stay pinned and take no part in a chunk's mean; no layer reuses the
    chunks of another. A policy with one keep set for the whole cache keeps one.
    """

    kind: ClassVar[str] = "chunkkv"

    chunk: int = parameter(20, doc="slots of a chunk", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_sets != "shared":
            object.__setattr__(self, "keep_sets", "layer")  # of all its kv heads together

    def priority(self, view: CacheView) -> Tensor:
        rank = self.policy.rank(view)
        pins, fixed = rank, pinned(rank)
        if rank.dim() == 3:
            pins, fixed = rank.amax(1), fixed.any(1)
            rank = rank.sum(1)
        means = self._chunk_means(rank, fixed)
        ranked = means.repeat_interleave(self.chunk, dim=-1)[..., : view.slots]
        return torch.where(fixed, pins, ranked)

    def _chunk_means(self, rank: Tensor, fixed: Tensor) -> Tensor:
        """The mean rank of each chunk's slots that are not fixed [..., chunks]."""
        fill = (0, -rank.shape[-1] % self.chunk)
        shape = (*rank.shape[:-1], -1, self.chunk)
        counted = pad(~fixed, fill).reshape(shape).sum(-1)
        total: Tensor = pad(rank.masked_fill(fixed, 0), fill).reshape(shape).sum(-1)
        return total / counted.clamp(min=1)
