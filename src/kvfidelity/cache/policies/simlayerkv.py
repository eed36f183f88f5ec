"""Few slots for layers that look at sinks and recent slots only."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends, slot_indices
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class SimLayerKV(Policy):
    """Keeps sinks and recent slots, and only few of them in lazy layers, whose latest query attends
    to hardly anything else (SimLayerKV, arXiv 2410.13846).

    A layer is lazy if the mean over its heads of the latest query's attention to the first `sinks`
    and the last `recent` slots is above `threshold`, as in kvpress 0.5.5. Departures: the paper and
    kvpress trim lazy layers to `sinks + recent` slots and keep all of the others', whatever that
    is in total. Here the total is the budget: lazy layers keep `sinks + recent`, but at most half a
    uniform budget, and the others share what is left, and drop the oldest after the sinks.
    """

    kind: ClassVar[str] = "simlayerkv"
    keep_sets: ClassVar[str] = "head"
    ragged: ClassVar[bool] = True

    threshold: float = parameter(0.9, doc="attention above which a layer is lazy", low=0, high=1)
    sinks: int = parameter(4, doc="first slots that count, always kept", low=0)
    recent: int = parameter(1024, doc="last slots that count", low=1)

    @property
    def query_window(self) -> int:
        return 1

    def priority(self, view: CacheView) -> Tensor:
        return pin_ends(slot_indices(view), self.sinks, 0, view.budget)

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        looked = torch.tensor([self._share(layer) for layer in view.by_head()])
        if bool(looked.isnan().any()):
            return looked[:, None]  # refused: the model's numbers are not finite
        lazy = looked > self.threshold
        number, layers = int(lazy.sum()), lazy.numel()
        few = min(self.sinks + self.recent, view.budget / 2)
        if number in (0, layers):
            return torch.ones(1, 1)
        others = (view.budget * layers - few * number) / (layers - number)
        return torch.where(lazy, few, others)[:, None]

    def _share(self, heads: tuple[CacheView, ...]) -> float:
        """The latest query's attention to sinks and recent slots, the mean over heads."""
        shares = []
        for head in heads:
            attention = head.window_attention(0)[:, -1]
            counted = torch.zeros(head.slots, dtype=torch.bool, device=attention.device)
            counted[: self.sinks] = True
            counted[-self.recent :] = True
            shares.append(attention[:, counted].sum(-1))
        return float(torch.stack(shares).mean())
