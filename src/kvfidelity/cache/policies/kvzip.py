"""What a model looks at when it repeats the text."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class KVzip(Policy):
    """Keeps the slots that the model looks at most when it repeats the cached text, wherever they
    are: layers and kv heads compete for the whole budget (KVzip, arXiv 2505.23416).

    An extra forward feeds the text again in parts of `chunk` tokens. A slot's rank is the largest
    weight that any fed query of its kv head gives it, in a softmax over the sinks, the part's slots
    and the fed tokens so far; the first `sinks` slots are kept. Both are as in kvpress 0.5.5.

    What it sees in a chat: the context is the chat so far, as far as any kv head still holds its
    tokens, with the chat template's tokens; the next question is unknown, as in the paper. In the
    workflow a turn of the user asks for the repetition; elsewhere the text is fed again without
    one. From the second part on, the last 8 tokens of the part before begin the reply (the paper
    and kvpress put them into the request). Departures: every kv head keeps at least one slot;
    tokens of the template are ranked like any other (kvpress leaves out those before the first
    message).
    """

    kind: ClassVar[str] = "kvzip"
    keep_sets: ClassVar[str] = "head"
    ragged: ClassVar[bool] = True
    needs_extra_forward: ClassVar[bool] = True

    chunk: int = parameter(2048, doc="tokens that are repeated in one forward", low=1)
    sinks: int = parameter(4, doc="first slots always kept", low=0)

    def priority(self, view: CacheView) -> Tensor:
        rank = view.repeated_attention(self.sinks, self.chunk)
        return pin_ends(rank, self.sinks, 0, view.budget)

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        total = min(view.budget, view.slots) * rank[..., 0].numel()
        best = torch.sort(rank.flatten(), descending=True, stable=True).indices[:total]
        owners = torch.bincount(best // rank.shape[-1], minlength=rank[..., 0].numel())
        return owners.view(rank.shape[:2])
