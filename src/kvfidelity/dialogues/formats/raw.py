"""What every format's reader returns."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

#: Questions about one conversation and the messages that hold their answers; LoCoMo has up to 633.
MOST_QUESTIONS = 5_000


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the file has it.

    role: user, assistant or system; another role by its name in the file, such as `function_call`;
    or "" for what is no message, whose text is empty. The last two keep their place here, so that
    messages can be numbered, and are left out of the dialogue. parts_left_out: parts of the message
    that hold no text, such as pictures.
    """

    role: str
    text: str
    parts_left_out: int = 0


@dataclass(frozen=True)
class RawQuestion:
    """A question about a conversation, from its data set.

    answer: "" if the conversation does not hold one. evidence: texts of the messages that hold it,
    as in the file. wrong: answers that the data set itself calls wrong.
    """

    question: str
    answer: str
    category: str
    evidence: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawConversation:
    """A conversation, or a segment of one, with at most MOST_QUESTIONS questions.

    start: index of its first message in the conversation. record_id: of a possible segment, the
    whole id of its record, which becomes its id where nothing shows that it is a segment.
    """

    conversation_id: str
    start: int
    messages: tuple[Message, ...]
    questions: tuple[RawQuestion, ...] = ()
    record_id: str | None = None

    def __post_init__(self) -> None:
        # The evidence of each is searched for in all messages.
        if sum(1 + len(item.evidence) for item in self.questions) > MOST_QUESTIONS:
            raise ValueError("more questions than a conversation has")


@dataclass
class SourceCounts:
    """What a reader found.

    records: read from the file. conversations: whole ones. dropped: number by reason.
    notes: number by kind of repair. truncated_at: byte at which the file ends in the middle of a
    record, None if it does not. read_as: how the file was read, such as "JSON Lines".
    """

    records: int = 0
    conversations: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    truncated_at: int | None = None
    read_as: str | None = None


@dataclass(frozen=True)
class Format:
    """How a record of a data set is written.

    name: as in the config. summary: the record in one line. published: where the data set can be
    found, None if several sets use the format. read: returns the conversation of a record (a JSON
    object); raises KeyError, TypeError or ValueError for a record of another format, which is
    then counted.
    """

    name: str
    summary: str
    read: Callable[[Any, SourceCounts], RawConversation]
    published: str | None = None


def answer_text(given: Any) -> str | None:
    """An answer as text; None for lists, objects and numbers that are not finite."""
    finite = isinstance(given, str | int) or (isinstance(given, float) and math.isfinite(given))
    return str(given) if finite else None


def conversation_id(given: Any, messages: Iterable[Message]) -> str:
    """The record's own id, or else a hash of its text."""
    if isinstance(given, str | int) and str(given).strip():
        return str(given)
    content = "\0".join(message.text for message in messages)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
