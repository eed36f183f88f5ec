"""Heavy hitters."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfidelity.cache.policies.attention import GRANULARITIES, attention_rank
from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class H2O(Policy):
    """Keeps recent slots and heavy hitters, the slots with the most accumulated attention
    (H2O, arXiv 2306.14048).

    The paper gives half the budget to each, per head. Departure: with grouped queries the sums of
    a kv head's query heads are averaged.
    """

    kind: ClassVar[str] = "h2o"
    needs_scores: ClassVar[bool] = True

    recent_share: float = parameter(
        0.5, doc="share of the budget for the last slots", low=0, high=1
    )
    granularity: str = parameter("head", doc="one keep set per what", choices=GRANULARITIES)

    def priority(self, view: CacheView) -> Tensor:
        rank = attention_rank(view, "accumulated", self.granularity)
        return pin_ends(rank, 0, int(view.budget * self.recent_share), view.budget)
