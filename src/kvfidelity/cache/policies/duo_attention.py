"""Everything for heads that retrieve, little for those that stream."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, pin_ends, slot_indices
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class DuoAttention(Policy):
    """Keeps all slots of the kv heads that retrieve, and sinks and recent slots of the others, as
    far as the budget goes (after DuoAttention, arXiv 2410.10819).

    Heads are split by their calibration's `retrieval`, see `cache.calibration`: the heads that
    retrieve most keep all that they hold, one after another, until the budget is used up; the last
    of them drops its oldest slots after the sinks. Departures: the paper learns a gate per kv head
    by distillation on synthetic passkeys, and kvpress 0.5.5 loads its gates for six models or
    estimates them from mean queries and keys; here heads are measured by what they look at while
    the model repeats a text of this project. The paper fixes the share of retrieval heads; here it
    follows from the budget. Streaming heads keep at most half a uniform budget.
    """

    kind: ClassVar[str] = "duo_attention"
    keep_sets: ClassVar[str] = "head"
    ragged: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = True

    sinks: int = parameter(4, doc="first slots that every head keeps", low=0)
    recent: int = parameter(256, doc="last slots that a streaming head keeps", low=1)

    def priority(self, view: CacheView) -> Tensor:
        return pin_ends(slot_indices(view), self.sinks, 0, view.budget)

    def shares(self, view: CacheView, rank: Tensor) -> Tensor:
        held = view.counts.flatten()
        budget = min(view.budget, view.slots)
        few = min(self.sinks + self.recent, max(1, budget // 2))
        kept = held.clamp(max=few)
        left = budget * held.numel() - int(kept.sum())
        order = view.calibration.retrieval.flatten().argsort(descending=True, stable=True)
        room = (held - kept)[order]
        taken = (left - (room.cumsum(0) - room)).clamp(min=0).minimum(room)
        return kept.index_add(0, order, taken).view(rank.shape[:2])
