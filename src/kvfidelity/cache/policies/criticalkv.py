"""Scores weighted by what a value adds to the output."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import PIN, parameter, pinned
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError


@dataclass(frozen=True)
class CriticalKV(PolicyWrapper):
    """Keeps half the budget by another policy's scores, the rest by these scores times the L1 norm
    of the value behind the output projection, per kv head (CriticalKV, arXiv 2502.03805).

    The rank of the second half is (score + epsilon) * ||W_O v||_1, the norm averaged over the
    query heads of a kv head; defaults are those of kvpress 0.5.5. The scores must not be below 0,
    as those of attention are; another ranking is refused. Departures: slots that the other policy
    pins stay pinned and count in the first half.
    """

    kind: ClassVar[str] = "criticalkv"
    keep_sets: ClassVar[str] = "head"
    needs_output_projection: ClassVar[bool] = True

    epsilon: float = parameter(1e-4, doc="added to the scores before weighting", low=0)
    first_share: float = parameter(
        0.5, doc="share of the budget that the scores alone decide", low=0, high=1
    )

    def priority(self, view: CacheView) -> Tensor:
        scores = self.policy.rank(view)
        if bool((scores < 0).any()):
            raise UserError(
                f"policy {self.kind} weights scores, and {self.policy.kind} ranks below 0; wrap a "
                "policy that ranks by attention, such as snapkv"
            )
        while scores.dim() < 3:
            scores = scores.unsqueeze(-2)
        norms = torch.stack([self._norms(view, index) for index in range(len(view.layers))])
        scores = scores.to(norms.device).expand_as(norms)
        fixed = pinned(scores)
        first = int(view.budget * self.first_share)
        if self.first_share > 0:
            first = max(1, first)
        best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :first]
        weighted = (scores.masked_fill(fixed, 0) + self.epsilon) * norms
        chosen = torch.finfo(weighted.dtype).max * PIN / 2  # after those that are pinned
        return torch.where(fixed, scores, weighted.scatter(-1, best, chosen))

    def _norms(self, view: CacheView, index: int) -> Tensor:
        """Mean over a kv head's query heads of ||W_O v||_1, fp32 [G, n]."""
        layer = view.layers[index]
        values, weights = layer.values.float(), layer.output_projection.float()
        groups = values.shape[0]
        total = values.new_zeros(values.shape[:2])
        # Head by head: all at once would be ratio times the whole hidden state in memory.
        for member in weights.view(groups, -1, *weights.shape[1:]).unbind(1):
            total += (values @ member).abs().sum(-1)
        return total / (weights.shape[0] // groups)
