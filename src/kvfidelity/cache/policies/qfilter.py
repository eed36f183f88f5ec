"""Keys along the direction of the queries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class QFilter(Policy):
    """Keeps keys that point where the queries do, per kv head (Q-Filters, arXiv 2503.02812).

    A query head's filter is the first right singular vector of its rotated queries, turned so that
    the mean query is on its positive side; a kv head's is the mean over its query heads. A slot's
    rank is the product of its rotated key with the filter. Departures: the paper computes filters
    once per model from a corpus; here they are those of the latest `window` queries of the chat, so
    that nothing is calibrated or downloaded. kvpress 0.5.5 negates the product, because the
    published filters point away from the queries.
    """

    kind: ClassVar[str] = "qfilter"

    window: int = parameter(128, doc="latest queries whose direction is used", low=1)

    @property
    def query_window(self) -> int:
        return self.window

    def priority(self, view: CacheView) -> Tensor:
        return torch.stack([self._layer(view, index) for index in range(len(view.layers))])

    def _layer(self, view: CacheView, index: int) -> Tensor:
        keys = view.layers[index].rotated_keys.float()
        queries = view.rotated_queries(index).float()
        groups, _, size = keys.shape
        filters = query_filters(queries).view(groups, -1, size).mean(1)
        return torch.einsum("gnd,gd->gn", keys, filters)


def query_filters(queries: Tensor) -> Tensor:
    """Unit vectors [H, d]: the main direction of `queries` [H, w, d], on the mean query's side."""
    if not bool(queries.isfinite().all()):
        return queries.new_full((queries.shape[0], queries.shape[2]), torch.nan)
    direction: Tensor = torch.linalg.svd(queries, full_matrices=False).Vh[:, 0]
    side = torch.einsum("hd,hd->h", direction, queries.mean(1))
    return torch.where(side < 0, -1.0, 1.0)[:, None] * direction
