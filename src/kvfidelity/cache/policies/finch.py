"""What a question attends to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class Finch(Policy):
    """Keeps what the question attends to, per kv head (FINCH, arXiv 2408.00167).

    As in kvpress 0.5.5 the attention of each query of the question is multiplied by the number of
    slots before it, averaged over the queries and over the kv head's query heads, and the question
    itself is kept.

    Departures: the paper is given a context and a question, and a chat is not. Under `trigger:
    prompt` the question is the turn's prompt, which is protected; under the other triggers nothing
    says where it is, and it is the latest `window` tokens. Of a longer prompt the latest `window`
    tokens ask. The context is ranked at once and not in chunks; `per_chunk` around this policy does
    that.
    """

    kind: ClassVar[str] = "finch"
    keep_sets: ClassVar[str] = "head"

    window: int = parameter(64, doc="most queries of the question that are looked through", low=1)

    @property
    def query_window(self) -> int:
        return self.window

    def priority(self, view: CacheView) -> Tensor:
        rank = torch.stack([self._layer(view, index) for index in range(len(view.layers))])
        return pin_ends(rank, 0, self._question(view, rank.shape[-1]), view.budget)

    def _layer(self, view: CacheView, index: int) -> Tensor:
        attention = view.window_attention(index)
        heads, window, slots = attention.shape
        groups = view.layers[index].keys.shape[0]
        queries = min(window, self._question(view, window))
        before = torch.arange(slots - queries, slots, device=attention.device)
        votes = (attention[:, window - queries :] * before[:, None]).mean(1)
        return votes.view(groups, heads // groups, slots).mean(1)

    def _question(self, view: CacheView, otherwise: int) -> int:
        """Slots of the question: the protected ones at the end, or the window's."""
        for start, stop in view.protected:
            if stop == view.slots and start < stop:
                return stop - start
        return min(self.window, otherwise)
