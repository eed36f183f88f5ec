"""Keys along the direction of the queries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class QFilter(Policy):
    """Keeps keys that point where the queries do, per kv head (Q-Filters, arXiv 2503.02812).

    A query head's filter is the first right singular vector of its rotated queries, turned so that
    the mean query is on its positive side; a kv head's is the mean over its query heads. A slot's
    rank is the product of its rotated key with the filter. As in the paper, filters are computed
    once per model, see `cache.calibration`. Departures: the text that they are computed from is the
    project's own, not a corpus; nothing is downloaded. kvpress 0.5.5 negates the product, because
    the published filters point away from the queries.
    """

    kind: ClassVar[str] = "qfilter"
    keep_sets: ClassVar[str] = "head"
    needs_calibration: ClassVar[bool] = True

    def priority(self, view: CacheView) -> Tensor:
        ranks = []
        for layer, filters in zip(view.layers, view.calibration.filters, strict=True):
            keys = layer.rotated_keys.float()
            ranks.append(torch.einsum("gnd,gd->gn", keys, filters.to(keys.device)))
        return torch.stack(ranks)
