"""The same share of every stretch of the cache."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import parameter, pinned
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class PerChunk(PolicyWrapper):
    """Keeps the same share of every chunk of slots, ranked by another policy, so that no stretch of
    the conversation is lost (the chunks of FINCH, arXiv 2408.00167; kvpress's ChunkPress).

    A slot's rank is its place in its chunk, as a share of the chunk. Departures from kvpress 0.5.5:
    the other policy ranks the whole cache, not each chunk as if it were alone; the budget is kept
    exactly, so chunks differ by at most one slot; slots that the other policy pins stay pinned.
    """

    kind: ClassVar[str] = "per_chunk"

    chunk: int = parameter(1024, doc="slots of a chunk", low=1)

    def priority(self, view: CacheView) -> Tensor:
        rank = self.policy.rank(view)
        places = torch.cat(
            [self._places(part) for part in torch.split(rank, self.chunk, dim=-1)], dim=-1
        )
        return torch.where(pinned(rank), rank, (-places).to(rank.dtype))

    def _places(self, rank: Tensor) -> Tensor:
        """Each slot's place, the highest rank first, as a share of the chunk; float64."""
        order = torch.sort(rank, dim=-1, descending=True, stable=True).indices
        return order.argsort(-1).double() / rank.shape[-1]
