"""Evicted values merged into the slots next to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.healing.base import Choice, FedMessages, Healed, Healing
from kvfidelity.cache.healing.window import window_logits, window_queries
from kvfidelity.cache.slots import as_grid

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache

#: Least attention that is divided by, so that nothing is divided by zero.
LEAST = 1e-30


@dataclass(frozen=True)
class Merge(Healing):
    """Moves the value of each kept slot towards those evicted next to it, by the attention that
    they received (after CaM, cache merging, Zhang et al., ICML 2024).

    An evicted slot j goes to the nearest kept slot i, the earlier of two: v_i becomes
    v_i + w sum_j p_j (v_j - v_i) / (p_i + w sum_j p_j), with p the mean attention of the latest
    `window` queries over a kv head's query heads. Departures: CaM merges into the slots that
    follow, at random by these ratios; here it is their expectation, on both sides. Keys stay.

    weight: w, how much evicted slots count; 0 leaves the values as they are.
    window: latest queries that attention is measured by.
    """

    kind: ClassVar[str] = "merge"
    edits_slots: ClassVar[bool] = True

    weight: float = 1.0
    window: int = 32

    @property
    def query_window(self) -> int:
        return self.window

    def read(self, cache: ManagedCache, choice: Choice) -> Any:
        assert isinstance(choice.kept, Tensor)
        kept = as_grid(choice.kept).to(cache.device)
        return [
            self._merged(cache, index, kept[min(index, kept.shape[0] - 1)])
            for index in range(len(cache.layers))
        ]

    def _merged(self, cache: ManagedCache, index: int, kept: Tensor) -> Tensor:
        """One layer's values of the kept slots [G', k], fp32 [G, k, d]."""
        values = cache.layers[index].live_values.float()
        groups, slots, size = values.shape
        attention = window_logits(cache, index, window_queries(cache, index, self.window))
        received = attention.softmax(-1).mean(1).view(groups, -1, slots).mean(1)
        kept = kept.expand(groups, -1).contiguous()
        nearest = _nearest(kept, slots)
        evicted = received.scatter(-1, kept, 0) * self.weight
        mass = values.new_zeros(groups, kept.shape[-1]).scatter_add(-1, nearest, evicted)
        sums = values.new_zeros(groups, kept.shape[-1], size)
        into = nearest[..., None].expand(-1, -1, size)
        sums = sums.scatter_add(1, into, evicted[..., None] * values)
        own = values.gather(1, kept[..., None].expand(-1, -1, size))
        whole = (received.gather(-1, kept) + mass).clamp(min=LEAST)
        merged: Tensor = own + (sums - mass[..., None] * own) / whole[..., None]
        return merged

    def write(self, cache: ManagedCache, found: Any, messages: FedMessages | None) -> Healed:
        for layer, values in zip(cache.layers, found, strict=True):
            layer.live_values.copy_(values)
        return Healed()


def _nearest(kept: Tensor, slots: int) -> Tensor:
    """For each of `slots` slots the index in `kept` [G, k] of the nearest one, int64 [G, n]."""
    all_slots = torch.arange(slots, device=kept.device).expand(kept.shape[0], -1).contiguous()
    after = torch.searchsorted(kept, all_slots).clamp(max=kept.shape[-1] - 1)
    before = (after - 1).clamp(min=0)
    back, ahead = ((all_slots - kept.gather(-1, side)).abs() for side in (before, after))
    return torch.where(back <= ahead, before, after)
