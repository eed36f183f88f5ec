"""Gist, recent slots and random spans of the middle."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter
from kvfidelity.cache.policies.hybrid import check_shares, pin_shares, span_numbers
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class RandomSpans(Policy):
    """Keeps the same first and last slots as `hybrid`, and as many spans of the same length between
    them, drawn uniformly.

    It is the control for the choice of spans. Each eviction draws for all spans again.
    """

    kind: ClassVar[str] = "random_spans"

    sinks: int = parameter(4, doc="first slots always kept", low=0)
    gist: float = parameter(0.1, doc="share of the budget for the first slots", low=0, high=1)
    recent: float = parameter(0.5, doc="share of the budget for the last slots", low=0, high=1)
    span: int = parameter(16, doc="tokens of a span", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self.kind, self.gist, self.recent)

    def priority(self, view: CacheView) -> Tensor:
        # One number per span of the whole conversation: which slots are left changes no draw.
        number = view.tokens_seen // self.span + 1
        drawn = torch.from_numpy(view.rng.random(number))
        rank = drawn[span_numbers(view.token_index[0, 0].cpu(), self.span)]
        return pin_shares(rank, view.budget, self.sinks, self.gist, self.recent)
