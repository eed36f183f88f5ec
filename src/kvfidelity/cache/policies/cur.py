"""Large keys and values among their neighbours."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends
from kvfidelity.cache.view import CacheView

LEVERAGES = ("key", "value", "mean", "product")


@dataclass(frozen=True)
class CUR(Policy):
    """Keeps slots whose key and value are large among their neighbours, per kv head (CurDKV,
    arXiv 2509.15038).

    A slot's leverage is its squared norm as a share of its block of `block` slots; by default that
    of the key times that of the value. Defaults are those of kvpress 0.5.5, whose form without a
    random projection this is. Departure: a block of zeros has leverage 0, where kvpress divides by
    zero.
    """

    kind: ClassVar[str] = "cur"
    keep_sets: ClassVar[str] = "head"

    leverage: str = parameter("product", doc="of what", choices=LEVERAGES)
    block: int = parameter(16, doc="slots whose norms are compared with each other", low=1)
    sinks: int = parameter(4, doc="first slots always kept", low=0)

    def priority(self, view: CacheView) -> Tensor:
        rank = torch.stack([self._rank(layer.keys, layer.values) for layer in view.layers])
        return pin_ends(rank, self.sinks, 0, view.budget)

    def _rank(self, keys: Tensor, values: Tensor) -> Tensor:
        if self.leverage == "key":
            return self._shares(keys)
        if self.leverage == "value":
            return self._shares(values)
        key, value = self._shares(keys), self._shares(values)
        return (key + value) / 2 if self.leverage == "mean" else key * value

    def _shares(self, vectors: Tensor) -> Tensor:
        """Squared norms as shares of their blocks, fp32 [G, n]."""
        norms = vectors.float().square().sum(-1)
        slots = norms.shape[-1]
        padded = pad(norms, (0, -slots % self.block))
        blocks = padded.view(norms.shape[0], -1, self.block)
        total = blocks.sum(-1, keepdim=True).clamp(min=torch.finfo(blocks.dtype).tiny)
        return (blocks / total).view_as(padded)[..., :slots]
