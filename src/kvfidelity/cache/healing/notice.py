"""A notice in words that part of the conversation is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from kvfidelity.cache.healing.base import (
    Choice,
    Encode,
    FedMessages,
    Healed,
    Healing,
    KeepSet,
    known_messages,
)
from kvfidelity.errors import UserError

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache

NOTICE = (
    "Note: an earlier part of this conversation has been removed. What was said there is no longer "
    "available to you."
)


@dataclass(frozen=True)
class TextInGap(Healing):
    """Feeds a turn of its own where the kept part ends, inside the budget.

    ids: of that turn, set by `prepared`.
    """

    between_turns: ClassVar[bool] = True

    ids: tuple[int, ...] = ()

    def text(self, encode: Encode) -> str:
        """What the turn's message says."""
        raise NotImplementedError

    def prepared(self, encode: Encode) -> Healing:
        return replace(self, ids=encode(self.text(encode)))

    def choose(self, keep: Callable[[int], KeepSet], budget: int, slots: int) -> Choice:
        if not self.ids:
            raise UserError(f"healing {self.kind} has no token ids: call its `prepared` first")
        if budget <= len(self.ids):
            raise UserError(
                f"healing {self.kind} takes {len(self.ids)} slots of the {budget} that remain: "
                "raise the threshold's target"
            )
        return Choice(keep(budget - len(self.ids)))

    def write(self, cache: ManagedCache, found: Any, messages: FedMessages | None) -> Healed:
        known = known_messages(self, messages)
        known.starts.append(cache.slot_table.tokens_seen)
        known.feed(cache, self.ids)
        return Healed(slots=len(self.ids), tokens=len(self.ids))


@dataclass(frozen=True)
class Notice(TextInGap):
    """Says in words that something is gone: a turn after the kept part, inside the budget."""

    kind: ClassVar[str] = "notice"

    def text(self, encode: Encode) -> str:
        return NOTICE


@dataclass(frozen=True)
class NoticeInMessage(Healing):
    """Says so at the start of the user's next message, outside the budget."""

    kind: ClassVar[str] = "notice_in_message"
    between_turns: ClassVar[bool] = True

    def message(self, text: str) -> str:
        return f"{NOTICE}\n\n{text}"
