"""Budgets that fall from layer to layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import parameter
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class PyramidKV(PolicyWrapper):
    """Keeps more slots in lower layers, ranked by another policy, SnapKV in the paper (PyramidKV,
    arXiv 2406.02069).

    Of a budget of b slots the last layer keeps b / beta and the first 2 b - b / beta, the others
    evenly between; where that is more than the cache holds beyond the window, the first layer keeps
    this and the last one the rest. As in kvpress 0.5.5 all layers keep b where the last would keep
    fewer than the window, which is always kept. Departure: the total is exactly that of a uniform
    budget, where rounding each layer's may miss it by a slot per layer.
    """

    kind: ClassVar[str] = "pyramidkv"
    keep_sets: ClassVar[str] = "head"
    ragged: ClassVar[bool] = True

    beta: int = parameter(20, doc="the larger, the fewer slots the last layer keeps", low=1)

    def priority(self, view: CacheView) -> Tensor:
        return self.policy.rank(view)

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        layers, _ = view.grid
        first, last = self._ends(view.budget, view.slots)
        return torch.linspace(first, last, layers, dtype=torch.float64)[:, None]

    def _ends(self, budget: int, slots: int) -> tuple[float, float]:
        """Slots of the first and of the last layer."""
        window = self.policy.query_window
        last = budget / self.beta
        first = 2 * budget - last
        if first >= slots - window:
            first = slots - window
            last = 2 * budget - first
        return (first, last) if slots >= first >= last >= window else (budget, budget)
