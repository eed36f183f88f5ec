"""Budgets per kv head by how concentrated its scores are."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import parameter
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class AdaKV(PolicyWrapper):
    """Shares a layer's budget out to its kv heads, by the slots that another policy ranks highest
    in all of them together (Ada-KV, arXiv 2407.11550).

    A layer with G kv heads keeps G times the budget, and each head at least the best `safeguard` of
    a uniform budget; its default is that of kvpress 0.5.5. Departure: slots that are pinned or
    protected count first. Once heads hold different numbers of slots, the other policy ranks each
    of them alone.
    """

    kind: ClassVar[str] = "adakv"
    keep_sets: ClassVar[str] = "head"
    ragged: ClassVar[bool] = True

    safeguard: float = parameter(
        0.2, doc="share of a uniform budget that every kv head keeps", low=0, high=1
    )

    def priority(self, view: CacheView) -> Tensor:
        return self.policy.rank(view)

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        layers, groups, slots = rank.shape
        budget = min(view.budget, view.slots)
        safe = min(max(1, int(budget * self.safeguard)), slots) if self.safeguard else 0
        best = torch.sort(rank, dim=-1, descending=True, stable=True).indices[..., :safe]
        held = rank > -torch.inf
        rank = rank.scatter(-1, best, torch.inf).masked_fill(~held, -torch.inf)
        order = torch.sort(rank.flatten(1), dim=-1, descending=True, stable=True).indices
        owners = order[:, : budget * groups] // slots
        # Exact in any order: whole numbers below 2^24.
        ones = torch.ones(owners.shape, device=rank.device)
        return torch.zeros(layers, groups, device=rank.device).scatter_add_(1, owners, ones)
