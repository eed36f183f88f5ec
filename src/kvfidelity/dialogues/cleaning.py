"""Makes turns of raw messages: undoes what a scrape left, orders speakers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from kvfidelity.dialogues.code_spans import split_code
from kvfidelity.dialogues.formats.raw import Message, RawConversation
from kvfidelity.dialogues.pool import Question, Turn

KNOWN_ROLES = ("user", "assistant", "system")
#: A message beyond this many characters is a pasted document rather than a chat; it is not cleaned,
#: and its conversation is not selected.
LONGEST_MESSAGE = 200_000
#: Boxes around one message; a page has two.
MOST_BOXES = 10
# What an HTML escape makes of a text. Other entities are what somebody wrote.
CHARACTERS = {
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
    "&quot;": '"',
    "&nbsp;": "\xa0",
    "&#39;": "'",
    "&#x27;": "'",
}
ENTITY = re.compile("|".join(CHARACTERS))
# A text that was escaped as a whole has none of these left.
UNESCAPED = re.compile(rf"[<>]|&(?!(?:{ENTITY.pattern.replace('&', '')}))")
# A message about markup or escapes means the entities that it names.
ABOUT_MARKUP = re.compile(r"html|xml|markup|entit|escap|encod|ampersand|\burl\b|://", re.IGNORECASE)
PUNCTUATION = re.compile("&(?:amp|quot|nbsp|#39|#x27);")
# The boxes that chat pages put around a whole message, known by their classes.
WRAPPER = re.compile(
    r"\s*<(div|span)\s+class=\"(?:[^\"]{0,300}\s)?(?:markdown|prose|whitespace-pre-wrap)(?:\s[^\"]{0,300})?\"\s*>"
)
COPY_BUTTON = re.compile(r"^Copy code$", flags=re.MULTILINE)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Undo what a scrape left of the page, outside code.

    A box of a chat page around the whole message goes, so do labels of copy buttons and control
    characters. HTML entities become characters if the message was escaped as a whole: no `<`, `>`
    or `&` is left in it, and it is not about markup. Code, fenced, indented or inline, stays as
    it is. Lone surrogates, which no tokenizer takes, are dropped everywhere, and white space
    around the message.
    """
    text = text if text.isascii() else SURROGATE.sub("", text)
    if len(text) > LONGEST_MESSAGE:
        return text.strip()
    text = _unwrapped(text)
    if _has_remnants(text):
        parts = split_code(text)
        escaped = _was_escaped("\n".join(part for is_code, part in parts if not is_code))
        text = "".join(part if is_code else _clean(part, escaped) for is_code, part in parts)
    return text.strip()


def _has_remnants(text: str) -> bool:
    """Whether anything may be cleaned; looking for a plain text first is ten times as fast."""
    return (
        ("&" in text and ENTITY.search(text) is not None)
        or ("Copy code" in text and COPY_BUTTON.search(text) is not None)
        or CONTROL.search(text) is not None
    )


def _clean(prose: str, escaped: bool) -> str:
    if escaped:
        prose = ENTITY.sub(lambda found: CHARACTERS[found[0]], prose)
    return CONTROL.sub("", COPY_BUTTON.sub("", prose))


def _was_escaped(prose: str) -> bool:
    return (
        _has_pair_or_punctuation(prose)
        and UNESCAPED.search(prose) is None
        and ABOUT_MARKUP.search(prose) is None
    )


def _has_pair_or_punctuation(prose: str) -> bool:
    """What an escape leaves; alone, a comparison sign may be one that the message is about."""
    opening = prose.find("&lt;")
    return 0 <= opening < prose.rfind("&gt;") or PUNCTUATION.search(prose) is not None


def _unwrapped(text: str) -> str:
    """The message without the boxes around it: each opens at its beginning, closes at its end."""
    for _ in range(MOST_BOXES):
        found = WRAPPER.match(text)
        if found is None:
            break
        tag = found[1]
        inner = text[found.end() :].rstrip()
        if not inner.endswith(f"</{tag}>"):
            return text
        inner = inner.removesuffix(f"</{tag}>")
        depth = 0
        for is_code, part in split_code(inner):
            for edge in () if is_code else re.findall(rf"<(/?){tag}\b", part):
                depth += -1 if edge else 1
                if depth < 0:
                    return text
        text = inner
    return text


def other_roles(conversation: RawConversation) -> dict[str, int]:
    """Messages of roles that a chat template has no place for, by role; `turns_of` leaves them out.

    Roles are named as in the file, in lower case, up to 40 characters.
    """
    names = (message.role for message in conversation.messages)
    return dict(Counter(_printable(n) for n in names if n and n not in KNOWN_ROLES))


def _printable(name: str) -> str:
    """A role's name that can be written into a report."""
    return name.lower()[:40].encode("utf-8", "replace").decode("utf-8")


def turns_of(
    conversation: RawConversation, counts: Counter[str]
) -> tuple[tuple[Turn, ...], str | None]:
    """Turns of a conversation; if there are none, the reason.

    System messages, empty messages, replies before the first question and an unanswered last
    question are left out, and so are messages of other roles (see `other_roles`) and what is no
    message; then messages of one speaker in a row become one. Each step is counted.
    """
    messages = []
    for message in conversation.messages:
        if message.role not in KNOWN_ROLES:
            reason = "messages_of_other_roles_dropped" if message.role else None
            counts[reason or "malformed_message_dropped"] += 1
            continue
        counts["message_parts_without_text_dropped"] += message.parts_left_out
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
    first = next(n for n, message in enumerate(messages) if message.role == "user")
    counts["leading_replies_dropped"] += first
    merged = _merged(messages[first:], counts)
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
    merged = []
    for role, group in groupby(messages, lambda message: message.role):
        texts = [message.text for message in group]
        counts["messages_merged"] += len(texts) - 1
        merged.append(Message(role, "\n\n".join(texts)))
    return merged
