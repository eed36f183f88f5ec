"""No eviction."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfidelity.cache.policies.base import Policy, slots_of
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class Baseline(Policy):
    """Nothing is evicted; what all others are compared with."""

    kind: ClassVar[str] = "baseline"
    evicts: ClassVar[bool] = False

    def own_size(self, slots: int) -> int:
        return slots

    def priority(self, view: CacheView) -> Tensor:
        return slots_of(view)
