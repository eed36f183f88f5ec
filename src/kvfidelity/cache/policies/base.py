"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError
from kvfidelity.options import check_option, option, option_fields


def parameter(default: Any = MISSING, *, doc: str, **allowed: Any) -> Any:
    """A dataclass field for a policy's parameter.

    Args:
        default: its value if the config does not set it; without one it is required.
        doc: what it means, for the documentation.
        allowed: `low`, `high`, `above` and `choices` of `options.option`.
    """
    return option(default, doc=doc, **allowed)


def keep_ratio(default: Any = MISSING) -> Any:
    """The parameter `keep_ratio`, which several policies share."""
    doc = "share of the cached slots kept at an eviction where the threshold sets no target"
    return parameter(default, doc=doc, above=0, high=1)


def slots_for_ratio(slots: int, ratio: float) -> int:
    """That share of the slots, rounded down, at least 1 (as in the paper's code)."""
    return max(1, int(slots * ratio))


@dataclass(frozen=True)
class Policy(ABC):
    """Ranks the slots of a cache; frozen, so that several runs can share one object.

    A subclass is a frozen dataclass. It sets `kind`, its name in the config, declares each field
    with `parameter`, and implements `priority`.
    """

    kind: ClassVar[str]
    #: Whether the policy ever evicts; only the baseline does not.
    evicts: ClassVar[bool] = True
    #: Whether it ranks by attention scores; the cache then collects them.
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for item in option_fields(self):
            if wrong := check_option(item, getattr(self, item.name)):
                raise UserError(f"policy {self.kind}: {wrong}")

    @property
    def query_window(self) -> int:
        """How many of the latest queries the policy uses; the cache keeps this many."""
        return 0

    def default_size(self, slots: int) -> int | None:
        """Slots that remain of `slots` if the threshold sets no target; None: it must set one."""
        return None

    def should_evict(self, view: CacheView) -> bool:
        """Whether the policy can rank now; if not, nothing is evicted."""
        return self.evicts

    @abstractmethod
    def priority(self, view: CacheView) -> Tensor:
        """A number per slot; the slots with the highest survive.

        Returns:
            Any real dtype: [n] for one keep set, [L, n] for one per layer, [L, G, n] for one per kv
            head.
        """

    def keep(self, view: CacheView) -> Tensor:
        """The keep set: int64 [k], [L, k] or [L, G, k] with k = budget, sorted slots.

        A shared one is on the CPU, as the slot table is; others stay on the device of the ranking.
        """
        rank = self.priority(view)
        rank = rank if rank.is_floating_point() else rank.double()
        # A policy may pin slots with infinity; protected slots still rank above them.
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
    """A copy of `rank` whose first `first` and last `last` slots are infinite."""
    rank = rank.clone()
    rank[..., :first] = torch.inf
    rank[..., max(rank.shape[-1] - last, 0) :] = torch.inf
    return rank
