"""Sinks and recent slots around any policy."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfidelity.cache.policies.base import parameter, pin_ends
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class Protect(PolicyWrapper):
    """Keeps the first slots, the attention sinks (arXiv 2309.17453), and the last ones, and the
    others as another policy ranks them.

    Where the budget is less than both, the sinks go first and the oldest of the recent slots are
    evicted.
    """

    kind: ClassVar[str] = "protect"

    sinks: int = parameter(4, doc="first slots always kept", low=0)
    recent: int = parameter(32, doc="last slots always kept", low=0)

    def priority(self, view: CacheView) -> Tensor:
        return pin_ends(self.policy.rank(view), self.sinks, self.recent, view.budget)
