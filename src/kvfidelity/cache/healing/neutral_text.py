"""Text as long as the notice that says nothing of a gap: the notice's control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kvfidelity.cache.healing.base import Encode, Healing
from kvfidelity.cache.healing.notice import NOTICE, TextInGap
from kvfidelity.errors import UserError

#: Common words, most of them one token each.
TEXT = (
    "The sun is up and the day is warm and the sea is calm and the old man sits by the door and "
    "looks at the boat that goes out in the morning and comes back in the evening with fish and "
    "salt and rope and a bag of wood for the fire"
)
ENDINGS = (".", "", " too.", ", too.", " now.", " so.", " as ever.", " and so on.")


def neutral_text(encode: Encode) -> str:
    """The neutral text whose turn has as many tokens as the notice's.

    Raises:
        UserError: this tokenizer has none.
    """
    wanted = len(encode(NOTICE))
    for text in _candidates():
        if len(encode(text)) == wanted:
            return text
    raise UserError(
        f"healing neutral_text: no text of the notice's {wanted} tokens with this tokenizer; "
        "leave the healing out for this model"
    )


def _candidates() -> Iterator[str]:
    words = TEXT.split()
    for ending in ENDINGS:
        for count in range(1, len(words) + 1):
            yield " ".join(words[:count]) + ending


@dataclass(frozen=True)
class NeutralText(TextInGap):
    """Says something else in the notice's place, of the same number of tokens."""

    kind: ClassVar[str] = "neutral_text"

    def text(self, encode: Encode) -> str:
        return neutral_text(encode)


@dataclass(frozen=True)
class NeutralInMessage(Healing):
    """Says something else at the start of the user's next message; as long as the notice there.

    words: that text, set by `prepared`.
    """

    kind: ClassVar[str] = "neutral_in_message"
    between_turns: ClassVar[bool] = True

    words: str = ""

    def prepared(self, encode: Encode) -> Healing:
        return replace(self, words=neutral_text(encode))

    def message(self, text: str) -> str:
        if not self.words:
            raise UserError(f"healing {self.kind} has no text: call its `prepared` first")
        return f"{self.words}\n\n{text}"
