"""What every reader yields."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    """One message as the file has it; `role` is user, assistant or system."""

    role: str
    text: str


@dataclass(frozen=True)
class RawQuestion:
    """A question about a conversation that its data set carries.

    answer: "" if the conversation does not hold one. evidence: texts of the messages that do, as
    the file has them. wrong: answers that the data set itself calls wrong.
    """

    question: str
    answer: str
    category: str
    evidence: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawConversation:
    """A conversation, or a segment of one: `start` is the index of its first message."""

    conversation_id: str
    start: int
    messages: tuple[Message, ...]
    questions: tuple[RawQuestion, ...] = ()


@dataclass
class SourceCounts:
    """What a reader met.

    records: read from the file. conversations: whole ones made of them. dropped: by reason.
    notes: by what was mended. truncated_at: byte where the file ends in the middle of a record,
    None if it does not.
    """

    records: int = 0
    conversations: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncated_at: int | None = None


@dataclass(frozen=True)
class Format:
    """How one data set writes its conversations.

    name: as in the config. about: the form in a line. published: where the data set is to be had,
    None if the form is no single set's own. read: from a record (a JSON object) to a conversation;
    raises KeyError, TypeError or ValueError on one not of this form, which is then counted.
    """

    name: str
    summary: str
    read: Callable[[Any, SourceCounts], RawConversation]
    published: str | None = None


def conversation_id(given: Any, messages: Iterable[Message]) -> str:
    """The id that a record gives itself, else one made of its text."""
    if isinstance(given, str | int) and str(given).strip():
        return str(given)
    content = "\0".join(message.text for message in messages)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
