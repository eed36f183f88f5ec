"""Budgets by layer, as a schedule says."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import parameter
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError


@dataclass(frozen=True)
class LayerSchedule(PolicyWrapper):
    """Keeps more slots in some layers than in others, ranked by another policy.

    The schedule gives the weights of the first, the middle and the last layer; those between lie on
    straight lines. Weights 2, 1, 0 are a pyramid, 1, 2, 1 favour the middle, 1, 1, 1 are a uniform
    budget. A layer gets its weight's share of the whole budget, within what it holds. After the
    layer-wise budgets of PyramidKV (arXiv 2406.02069), whose own schedule is policy `pyramidkv`.
    """

    kind: ClassVar[str] = "layer_schedule"
    keep_sets: ClassVar[str] = "head"
    ragged: ClassVar[bool] = True

    first: float = parameter(1.5, doc="weight of the first layer", low=0)
    middle: float = parameter(1.0, doc="weight of the middle layer", low=0)
    last: float = parameter(0.5, doc="weight of the last layer", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.first + self.middle + self.last:
            raise UserError(f"policy {self.kind}: first, middle and last are all 0; raise one")

    def priority(self, view: CacheView) -> Tensor:
        return self.policy.rank(view)

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        layers, _ = view.grid
        depth = torch.linspace(0, 2, layers, dtype=torch.float64)
        falling = self.first + (self.middle - self.first) * depth.clamp(max=1)
        return (falling + (self.last - self.middle) * (depth - 1).clamp(min=0))[:, None]
