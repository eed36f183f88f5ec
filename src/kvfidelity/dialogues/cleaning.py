"""Makes turns of raw messages: removes scraped markup and odd characters, orders speakers."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence

from kvfidelity.dialogues.formats.raw import Message, RawConversation
from kvfidelity.dialogues.pool import Question, Turn

ENTITY = re.compile(r"&(?:lt|gt|amp|quot|nbsp|#39|#x27);")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Left over from the layout of the chat pages; markup that a user wrote about looks different.
LEFTOVER = re.compile(
    r"</?(?:div|span)(?:\s+class=\"[^\"]*\")?\s*>|^Copy code$", flags=re.MULTILINE
)


def clean_text(text: str) -> str:
    """Unescape HTML entities, drop layout markup, control characters and lone surrogates."""
    if ENTITY.search(text):
        text = html.unescape(text)
    text = LEFTOVER.sub("", text)
    text = CONTROL.sub("", text)
    return text.encode("utf-8", "ignore").decode("utf-8").strip()


def turns_of(
    conversation: RawConversation, counts: Counter[str]
) -> tuple[tuple[Turn, ...], str | None]:
    """Turns of a conversation; if there are none, the reason.

    System messages, empty messages, replies before the first question and an unanswered last
    question are left out; messages of one speaker in a row become one. Each step is counted.
    """
    messages = []
    for message in conversation.messages:
        text = clean_text(message.text)
        counts["messages_cleaned"] += text != message.text.strip()
        if message.role == "system":
            counts["system_messages_dropped"] += 1
        elif text:
            messages.append(Message(message.role, text))
        else:
            counts["empty_messages_dropped"] += 1
    if not messages:
        return (), "empty"
    if all(message.role != "user" for message in messages):
        return (), "no_human_turn"
    while messages[0].role == "assistant":
        messages.pop(0)
        counts["leading_replies_dropped"] += 1
    merged = _merged(messages, counts)
    if len(merged) % 2:
        merged.pop()
        counts["unanswered_questions_dropped"] += 1
    pairs = zip(merged[::2], merged[1::2], strict=True)
    turns = tuple(Turn(question.text, answer.text) for question, answer in pairs)
    return turns, None if turns else "no_reply"


def questions_of(conversation: RawConversation, turns: Sequence[Turn]) -> tuple[Question, ...]:
    """A conversation's questions, with the turns that hold their evidence."""
    return tuple(
        Question(
            clean_text(item.question),
            clean_text(item.answer),
            item.category,
            tuple(sorted({turn for text in item.evidence for turn in _turns_with(text, turns)})),
            tuple(clean_text(text) for text in item.wrong),
        )
        for item in conversation.questions
    )


def _turns_with(evidence: str, turns: Sequence[Turn]) -> list[int]:
    """The first turn that holds a text; found by text, since cleaning renumbers messages."""
    text = clean_text(evidence)
    for number, turn in enumerate(turns):
        if text and (text in turn.user or text in turn.assistant):
            return [number]
    return []


def _merged(messages: list[Message], counts: Counter[str]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            merged[-1] = Message(message.role, merged[-1].text + "\n\n" + message.text)
            counts["messages_merged"] += 1
        else:
            merged.append(message)
    return merged
