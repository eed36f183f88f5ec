"""The kept text, read again from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from kvfidelity.cache.healing.base import (
    Choice,
    FedMessages,
    Healed,
    Healing,
    KeepSet,
    known_messages,
)
from kvfidelity.errors import UserError

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


@dataclass(frozen=True)
class Refresh(Healing):
    """Feeds the kept tokens again, as if nothing else had ever been said: the ceiling.

    Keys and values are then those of a fresh run on the kept text, at the positions 0 to n - 1.
    It needs one keep set for all layers and heads, because others are no text. It costs a prefill
    of the kept tokens. Attention scores and recent queries stay those of the run before, so that a
    policy ranks as it would without it.
    """

    kind: ClassVar[str] = "refresh"
    between_turns: ClassVar[bool] = True
    edits_slots: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    needs_one_keep_set: ClassVar[bool] = True
    only_positions: ClassVar[str | None] = "rerotated"

    def choose(self, keep: Callable[[int], KeepSet], budget: int, slots: int) -> Choice:
        kept = keep(budget)
        if not isinstance(kept, Tensor) or kept.dim() != 1:
            # Of a policy that declares one keep set and ranks otherwise.
            raise UserError(self._one_keep_set("this policy"))
        return Choice(kept)

    def write(self, cache: ManagedCache, found: Any, messages: FedMessages | None) -> Healed:
        known, text = known_messages(self, messages), cache.transcript
        assert text is not None  # the evictor refuses a cache without it
        seen = cache.slot_table.tokens_seen
        if len(text.ids) != seen:
            raise ValueError(
                f"healing {self.kind}: {len(text.ids)} token ids are known, and the cache has seen "
                f"{seen}"
            )
        fresh = cache.empty()
        kept = cache.slot_table.token_index[0, 0].tolist()
        known.feed(fresh, [text.ids[index] for index in kept])
        cache.replace_contents(fresh)
        return Healed()
