"""Eviction by attention received."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, keep_ratio, parameter, pin_ends, slots_for_ratio
from kvfidelity.cache.scores import Reduction, ScoreHistory, combine
from kvfidelity.cache.view import CacheView

REDUCTIONS = tuple(Reduction)
HISTORIES = tuple(ScoreHistory)
GRANULARITIES = ("shared", "layer", "head")


def attention_rank(
    view: CacheView,
    history: str,
    granularity: str = "shared",
    over_heads: str = "mean",
    over_layers: str = "mean",
) -> Tensor:
    """Attention column sums [L, H, n] reduced to [n], [L, n] or [L, G, n], over heads first."""
    scores = view.attention(ScoreHistory(history))
    if granularity == "head":
        layers, heads, slots = scores.shape
        groups = view.layers[0].keys.shape[0]
        return combine(scores.view(layers, groups, heads // groups, slots), over_heads, 2)
    by_layer = combine(scores, over_heads, 1)
    return by_layer if granularity == "layer" else combine(by_layer, over_layers, 0)


@dataclass(frozen=True)
class AttentionTop(Policy):
    """Keeps the slots that received the most attention (AttentionTop of arXiv 2511.04686).

    Defaults are the paper's: scores are the mean over layers and heads of the attention summed
    over the queries of the latest forward only; nothing is protected; without scores (before a turn
    under `trigger: paper`) it does nothing. Departures on request:
    other aggregates (its "next check 1"), accumulated scores (H2O, arXiv 2306.14048), division by
    the number of queries that could see a slot, protected sinks and recent slots, and one keep set
    per layer or kv head. Where the budget is less than sinks and recent slots together, the sinks
    go first and the oldest of the recent slots are evicted.
    """

    kind: ClassVar[str] = "attention_top"
    needs_scores: ClassVar[bool] = True

    keep_ratio: float = keep_ratio(0.99)
    history: str = parameter("latest", doc="which queries count", choices=HISTORIES)
    over_heads: str = parameter("mean", doc="how heads are combined", choices=REDUCTIONS)
    over_layers: str = parameter("mean", doc="how layers then are", choices=REDUCTIONS)
    granularity: str = parameter("shared", doc="one keep set per what", choices=GRANULARITIES)
    age_normalised: bool = parameter(False, doc="divide a score by the queries that saw the slot")
    sinks: int = parameter(0, doc="first slots always kept", low=0)
    recent: int = parameter(0, doc="last slots always kept", low=0)

    def default_size(self, slots: int) -> int:
        return slots_for_ratio(slots, self.keep_ratio)

    def should_evict(self, view: CacheView) -> bool:
        return view.has_scores

    def priority(self, view: CacheView) -> Tensor:
        rank = attention_rank(
            view, self.history, self.granularity, self.over_heads, self.over_layers
        )
        if self.age_normalised:
            ages = view.queries_seen().to(rank.device)
            rank = rank / (
                ages[0, 0] if rank.dim() == 1 else ages[:, 0] if rank.dim() == 2 else ages
            )
        return pin_ends(rank, self.sinks, self.recent, view.budget)


@dataclass(frozen=True)
class AttentionBottom(Policy):
    """Keeps the slots that received the least attention (AttentionBottom of arXiv 2511.04686).

    As in the paper's code it falls back to random slots while there are no scores.
    """

    kind: ClassVar[str] = "attention_bottom"
    needs_scores: ClassVar[bool] = True

    keep_ratio: float = keep_ratio(0.99)
    history: str = parameter("latest", doc="which queries count", choices=HISTORIES)
    over_heads: str = parameter("mean", doc="how heads are combined", choices=REDUCTIONS)
    over_layers: str = parameter("mean", doc="how layers then are", choices=REDUCTIONS)

    def default_size(self, slots: int) -> int:
        return slots_for_ratio(slots, self.keep_ratio)

    def priority(self, view: CacheView) -> Tensor:
        if not view.has_scores:
            return torch.from_numpy(view.rng.random(view.slots))
        return -attention_rank(
            view, self.history, over_heads=self.over_heads, over_layers=self.over_layers
        )
