"""No eviction."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfidelity.cache.policies.base import Policy, slot_indices
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class Baseline(Policy):
    """Evicts nothing; all other policies are compared with it."""

    kind: ClassVar[str] = "baseline"
    evicts: ClassVar[bool] = False

    def default_size(self, slots: int) -> int:
        return slots

    def priority(self, view: CacheView) -> Tensor:
        return slot_indices(view)
