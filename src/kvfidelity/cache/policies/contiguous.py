"""Policies that keep slots by their index: gist, window, blocks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.attention import attention_rank
from kvfidelity.cache.policies.base import (
    Policy,
    keep_ratio,
    parameter,
    pin_ends,
    slot_indices,
    slots_for_ratio,
)
from kvfidelity.cache.view import CacheView

#: Above any attention score.
PINNED = 1e300
#: Share of a target that `sliding_window_gist_attentive` pins where its own sizes exceed it.
PINNED_SHARE = 0.6


@dataclass(frozen=True)
class SlidingWindow(Policy):
    """Keeps the last slots (SlidingWindow of arXiv 2511.04686)."""

    kind: ClassVar[str] = "sliding_window"

    keep_ratio: float = keep_ratio()

    def default_size(self, slots: int) -> int:
        return slots_for_ratio(slots, self.keep_ratio)

    def priority(self, view: CacheView) -> Tensor:
        return slot_indices(view)


@dataclass(frozen=True)
class EvictOldest(Policy):
    """Drops the oldest slots (EvictOldest of arXiv 2511.04686)."""

    kind: ClassVar[str] = "evict_oldest"

    discard_ratio: float = parameter(doc="share of the slots dropped", low=0, high=1)

    def default_size(self, slots: int) -> int:
        return max(1, slots - int(slots * self.discard_ratio))

    def priority(self, view: CacheView) -> Tensor:
        return slot_indices(view)


@dataclass(frozen=True)
class SlidingWindowGist(Policy):
    """Keeps the first slots, the gist, and optionally the last (SlidingWindowGist of
    arXiv 2511.04686, whose comparison is 2,000 and 0).

    With a target, `recent_tokens` is kept as given and the gist gets the rest. As in the paper's
    code under `trigger: paper`, an eviction after the prefill drops the current prompt when
    `recent_tokens` is 0.
    """

    kind: ClassVar[str] = "sliding_window_gist"

    gist_tokens: int = parameter(2000, doc="first slots kept where no target is set", low=0)
    recent_tokens: int = parameter(0, doc="last slots kept", low=0)

    def default_size(self, slots: int) -> int:
        return min(slots, self.gist_tokens + self.recent_tokens)

    def priority(self, view: CacheView) -> Tensor:
        return pin_ends(-slot_indices(view), 0, self.recent_tokens, view.budget)


@dataclass(frozen=True)
class SlidingWindowGistAttentive(Policy):
    """Keeps gist and recent slots and, between them, those that received the most attention
    (SlidingWindowGistAttentive of arXiv 2511.04686).

    As in the paper's code `keep_ratio` is the share kept of all slots, gist and recent ones are
    kept even if they are more than that, and without scores what lies between is drawn at random.
    A target that is less than both is divided: three fifths of it are pinned, gist and recent slots
    in their proportion, and the rest goes by attention, much as where the paper keeps 512, 2,048
    and the best of the rest of 4,800.
    """

    kind: ClassVar[str] = "sliding_window_gist_attentive"
    needs_scores: ClassVar[bool] = True

    keep_ratio: float = keep_ratio(0.9)
    gist_tokens: int = parameter(512, doc="first slots kept", low=0)
    recent_tokens: int = parameter(2048, doc="last slots kept", low=0)

    def default_size(self, slots: int) -> int:
        fixed = self.gist_tokens + self.recent_tokens
        least = fixed if fixed < slots else min(slots, self.recent_tokens)
        return max(least, slots_for_ratio(slots, self.keep_ratio))

    def priority(self, view: CacheView) -> Tensor:
        if view.has_scores:
            rank = attention_rank(view, "latest").double().cpu()
        else:
            rank = torch.from_numpy(view.rng.random(view.slots))
        first, last = self._pinned(view)
        gist = slot_indices(view)[:first]
        rank[: gist.numel()] = PINNED / 2 * (1 - gist / view.slots)
        return pin_ends(rank, 0, last, view.budget)

    def _pinned(self, view: CacheView) -> tuple[int, int]:
        """How many first and last slots are kept."""
        both = self.gist_tokens + self.recent_tokens
        if view.budget >= both or view.budget == self.default_size(view.slots):
            return self.gist_tokens, self.recent_tokens
        pinned = view.budget * PINNED_SHARE
        first = int(pinned * self.gist_tokens / both)
        return first, int(pinned) - first


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keeps a few first slots, the attention sinks, and the last ones (arXiv 2309.17453).

    The paper rotates by index in the cache, which is `positions: rerotated`. With a target the
    window gets what the sinks leave; `recent` counts only where no target is set.
    """

    kind: ClassVar[str] = "streaming_llm"

    sinks: int = parameter(4, doc="first slots always kept", low=0)
    recent: int = parameter(2000, doc="last slots kept where no target is set", low=0)

    def default_size(self, slots: int) -> int:
        return min(slots, self.sinks + self.recent)

    def priority(self, view: CacheView) -> Tensor:
        return pin_ends(slot_indices(view), self.sinks, 0, view.budget)


@dataclass(frozen=True)
class Block(Policy):
    """Keeps one contiguous block: the first, middle or last slots (next check 2 of
    arXiv 2511.04686: does it matter which block is kept?)."""

    kind: ClassVar[str] = "block"

    which: str = parameter(doc="which block is kept", choices=("first", "middle", "last"))
    tokens: int = parameter(2000, doc="slots kept where no target is set", low=0)

    def default_size(self, slots: int) -> int:
        return min(slots, self.tokens)

    def priority(self, view: CacheView) -> Tensor:
        slots = slot_indices(view)
        centre = {"first": 0.0, "middle": (view.slots - 1) / 2, "last": float(view.slots)}
        return -(slots - centre[self.which]).abs()
