"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError


def parameter(
    default: Any = MISSING,
    *,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A policy's parameter: what it means and which values it takes.

    `low` and `high` are inclusive bounds, `above` an exclusive lower one.
    """
    bounds = {"doc": doc, "low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata=bounds)


def keep_ratio(default: Any = MISSING) -> Any:
    """The share of slots kept where no target is set; several policies have it."""
    doc = "share of the cached slots kept at an eviction where the threshold sets no target"
    return parameter(default, doc=doc, above=0, high=1)


def slots_for_ratio(slots: int, ratio: float) -> int:
    """That share of the slots, rounded down, but one at least (as the paper's code has it)."""
    return max(1, int(slots * ratio))


@dataclass(frozen=True)
class Policy(ABC):
    """Ranks the slots of a cache; frozen, so that one object serves any number of runs.

    Subclasses set `kind`, the name in the config, and are dataclasses whose fields are made by
    `parameter`.
    """

    kind: ClassVar[str]
    #: Whether the policy ever evicts; only the baseline does not.
    evicts: ClassVar[bool] = True
    #: Whether it ranks by attention scores; the cache then collects them.
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for item in fields(self):
            _check(self.kind, item.name, getattr(self, item.name), item.metadata)

    @property
    def query_window(self) -> int:
        """How many of the latest queries the policy looks through."""
        return 0

    def default_size(self, slots: int) -> int | None:
        """Slots left of `slots` where the threshold sets no target; None: a target is needed."""
        return None

    def should_evict(self, view: CacheView) -> bool:
        """Whether the policy evicts at this moment."""
        return self.evicts

    @abstractmethod
    def priority(self, view: CacheView) -> Tensor:
        """The higher, the longer kept: [n] for one keep set, [L, n] for one per layer, [L, G, n]
        for one per kv head."""

    def keep(self, view: CacheView) -> Tensor:
        """The keep set: int64 [k], [L, k] or [L, G, k] with k = budget, sorted slots.

        A shared one is on the CPU, where slots are counted; many stay where they were ranked.
        """
        rank = self.priority(view)
        rank = rank if rank.is_floating_point() else rank.double()
        # A policy may pin its own slots by infinity; protected ones still go before them.
        highest = torch.finfo(rank.dtype).max
        rank = rank.clamp(-highest, highest)
        for start, stop in view.protected:
            rank[..., start:stop] = torch.inf
        size = min(view.budget, view.slots)
        best = torch.sort(rank, dim=-1, descending=True, stable=True).indices[..., :size]
        kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(-1, best, True)
        slots = kept.nonzero()[:, -1].reshape(best.shape)
        return slots.cpu() if slots.dim() == 1 else slots


def slot_indices(view: CacheView) -> Tensor:
    """0..n-1 as float64 [n]."""
    return torch.arange(view.slots, dtype=torch.float64)


def pin_ends(rank: Tensor, first: int, last: int) -> Tensor:
    """`rank` with the first and last slots put above all others."""
    rank = rank.clone()
    rank[..., :first] = torch.inf
    rank[..., max(rank.shape[-1] - last, 0) :] = torch.inf
    return rank


def _check(kind: str, name: str, value: Any, allowed: Any) -> None:
    low, high, above = allowed.get("low"), allowed.get("high"), allowed.get("above")
    if allowed.get("choices") and value not in allowed["choices"]:
        options = ", ".join(allowed["choices"])
        raise UserError(f"policy {kind}: {name} is {value!r}; choose one of {options}")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if too_low or (high is not None and value > high):
        lower = f"above {above}" if above is not None else f"at least {low}"
        upper = f" and at most {high}" if high is not None else ""
        raise UserError(f"policy {kind}: {name} is {value}; it must be {lower}{upper}")
