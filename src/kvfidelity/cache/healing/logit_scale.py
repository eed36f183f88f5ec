"""Attention logits scaled by how much shorter the cache is than the conversation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvfidelity.cache.healing.base import FedMessages, Healed, Healing
from kvfidelity.cache.healing.changed_attention import ChangedAttention

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


@dataclass(frozen=True)
class LogitScale(Healing):
    """Multiplies attention logits by log(tokens seen) / log(slots kept), both as of the eviction.

    The factor is that of length-dependent scaling (arXiv 2202.12172), which keeps the entropy of
    attention as the number of keys changes; it holds until the next eviction.

    strength: 0 leaves the logits as they are, 1 is the full factor.
    """

    kind: ClassVar[str] = "logit_scale"
    changes_attention: ClassVar[bool] = True

    strength: float = 1.0

    def write(self, cache: ManagedCache, found: Any, messages: FedMessages | None) -> Healed:
        seen, kept = cache.slot_table.tokens_seen, cache.size
        factor = math.log(seen) / math.log(kept) if kept > 1 else 1.0
        cache.changed_attention = ChangedAttention(factor=1 + self.strength * (factor - 1))
        return Healed()
