"""Policies that rank by keys alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from kvfidelity.cache.policies.base import Policy
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class KNorm(Policy):
    """Keeps keys of small L2 norm, per kv head (arXiv 2406.11430)."""

    kind: ClassVar[str] = "knorm"
    keep_sets: ClassVar[str] = "head"

    def priority(self, view: CacheView) -> Tensor:
        return torch.stack([-layer.keys.float().norm(dim=-1) for layer in view.layers])


@dataclass(frozen=True)
class KeyDiff(Policy):
    """Keeps keys least like the average key, per kv head (KeyDiff, arXiv 2504.15364).

    Likeness is the cosine to the mean of the normalised keys, which are rotated as in the paper.
    """

    kind: ClassVar[str] = "keydiff"
    keep_sets: ClassVar[str] = "head"

    def priority(self, view: CacheView) -> Tensor:
        return torch.stack([self._layer(layer.rotated_keys.float()) for layer in view.layers])

    def _layer(self, keys: Tensor) -> Tensor:
        anchor = normalize(keys, dim=-1).mean(1, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)
