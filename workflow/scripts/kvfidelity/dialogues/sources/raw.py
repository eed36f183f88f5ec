"""What every reader yields."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """One message as the file has it; `role` is user, assistant or system."""

    role: str
    text: str


@dataclass(frozen=True)
class RawConversation:
    """A conversation, or a segment of one: `start` is the index of its first message."""

    conversation_id: str
    start: int
    messages: tuple[Message, ...]


@dataclass
class SourceCounts:
    """What a reader met.

    records: read from the file. dropped: by reason. notes: by what was mended. truncated_at: byte
    where the file ends in the middle of a record, None if it does not.
    """

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncated_at: int | None = None
