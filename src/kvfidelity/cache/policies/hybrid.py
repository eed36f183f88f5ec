"""Gist, recent slots and whole spans of the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError

SCORES = ("attention", "window", "keydiff", "rank_mean")
WHOLE, BY_HEAD = "shared", "head"
TOKENS, MESSAGES = SPANS = ("tokens", "messages")


@dataclass(frozen=True)
class Hybrid(Policy):
    """Keeps sinks and a gist, the recent slots, and between them whole spans of neighbouring
    tokens: those whose mean score is highest (this project's answer to open question 1 of
    arXiv 2511.04686).

    Of a budget b the first max(sinks, gist * b) slots and the last recent * b are kept; the rest of
    it goes to spans. A span is `span` consecutive token indices, or a message, so an eviction does
    not change where spans begin. Of the
    first span that does not fit, the first slots are kept.

    A slot's score is the mean over layers and heads, or over a kv head's query heads, of one of:
    `attention`, what it received in all divided by the queries that could see it (H2O's scores
    without their bias towards old slots); `window`, the mean attention of the latest `window`
    queries, as in SnapKV; `keydiff`, minus the cosine to the mean key (arXiv 2504.15364).
    `rank_mean` is the mean of the three scores' places among all slots, from 0 to 1.
    """

    kind: ClassVar[str] = "hybrid"

    sinks: int = parameter(4, doc="first slots always kept", low=0)
    gist: float = parameter(0.1, doc="share of the budget for the first slots", low=0, high=1)
    recent: float = parameter(0.5, doc="share of the budget for the last slots", low=0, high=1)
    span: int = parameter(16, doc="tokens of a span; 1 keeps single slots", low=1)
    spans: str = parameter(TOKENS, doc="spans of `span` tokens, or of a message", choices=SPANS)
    score: str = parameter("rank_mean", doc="what spans are ranked by", choices=SCORES)
    window: int = parameter(32, doc="latest queries of the score `window`", low=1)
    granularity: str = parameter(
        WHOLE, doc="one keep set for the whole cache, or one per kv head", choices=(WHOLE, BY_HEAD)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self.kind, self.gist, self.recent)
        # Declared by each class; here it depends on the score, and the dataclass is frozen.
        object.__setattr__(self, "needs_scores", self.score in ("attention", "rank_mean"))

    @property
    def query_window(self) -> int:
        return self.window if self.score in ("window", "rank_mean") else 0

    def priority(self, view: CacheView) -> Tensor:
        if self.spans == TOKENS:
            numbers = span_numbers(view.token_index, self.span)
        else:
            numbers = view.message_numbers()
        rank = span_means(self._scores(view), numbers)
        return pin_shares(rank, view.budget, self.sinks, self.gist, self.recent)

    def _scores(self, view: CacheView) -> Tensor:
        """A score per slot: fp32 [n] or [L, G, n]."""
        if self.score == "rank_mean":
            parts = [self._scores_of(view, name) for name in SCORES[:-1]]
            return torch.stack([place(part) for part in parts]).mean(0)
        return self._scores_of(view, self.score)

    def _scores_of(self, view: CacheView, name: str) -> Tensor:
        rows = torch.stack([self._layer(view, name, index) for index in range(len(view.layers))])
        return rows if self.granularity == BY_HEAD else rows.mean((0, 1))

    def _layer(self, view: CacheView, name: str, index: int) -> Tensor:
        """One layer's scores by kv head, fp32 [G, n]."""
        keys = view.layers[index].rotated_keys.float() if name == "keydiff" else None
        if keys is not None:
            directions = torch.nn.functional.normalize(keys, dim=-1)
            mean = directions.mean(1, keepdim=True)
            return -torch.nn.functional.cosine_similarity(keys, mean, dim=-1)
        if name == "attention":
            received = view.attention(ScoreHistory.ACCUMULATED)[index]
            ages = view.queries_seen().to(received.device)
            ages = ages[min(index, ages.shape[0] - 1)]
        else:
            received, ages = view.window_attention(index).mean(1), None
        groups = view.layers[index].keys.shape[0]
        by_group = received.view(groups, -1, received.shape[-1]).mean(1)
        return by_group if ages is None else by_group / ages


def check_shares(kind: str, gist: float, recent: float) -> None:
    """Refuse shares of the budget that are more than all of it.

    Raises:
        UserError: names both.
    """
    if gist + recent > 1:
        raise UserError(
            f"policy {kind}: gist {gist} and recent {recent} are shares of one budget; together "
            "they must be at most 1"
        )


def place(scores: Tensor) -> Tensor:
    """Each score's rank along the last dimension, from 0 to 1; of two equals the earlier first."""
    order = torch.sort(scores, dim=-1, stable=True).indices
    places = order.argsort(-1).float() / max(scores.shape[-1] - 1, 1)
    return places.masked_fill(scores.isnan(), torch.nan)  # which has no place


def span_numbers(token_index: Tensor, span: int) -> Tensor:
    """The number of each token's span, int64 as `token_index`."""
    return torch.div(token_index, span, rounding_mode="floor")


def span_means(scores: Tensor, spans: Tensor) -> Tensor:
    """The mean score of each slot's span.

    Args:
        scores: [n] or [L, G, n]. spans: int64 [L', G', n], the number of each slot's span.
    """
    spans = spans.to(scores.device)
    spans = spans[0, 0] if scores.dim() == 1 else spans.expand(scores.shape)
    starts = torch.ones_like(spans, dtype=torch.bool)
    starts[..., 1:] = spans[..., 1:] != spans[..., :-1]
    number = starts.long().cumsum(-1) - 1
    empty = torch.zeros_like(scores)
    total = empty.scatter_add(-1, number, scores)
    slots = empty.scatter_add(-1, number, torch.ones_like(scores))
    return (total / slots.clamp(min=1)).gather(-1, number)


def pin_shares(rank: Tensor, budget: int, sinks: int, gist: float, recent: float) -> Tensor:
    """`rank` with the first slots, sinks at least, and the last ones infinite, by their shares."""
    first = max(sinks, int(budget * gist))
    return pin_ends(rank, first, int(budget * recent), budget)
