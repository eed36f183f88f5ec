"""Reads lists of messages, whatever their keys are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.dialogues.formats.raw import Message, SourceCounts

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}


def messages_of(items: Any, role: str, text: str, counts: SourceCounts) -> tuple[Message, ...]:
    """Messages of a list of objects with the keys `role` and `text`; malformed ones are counted.

    Raises:
        TypeError: `items` is not a list.
    """
    if not isinstance(items, list | tuple):
        raise TypeError("not a list of messages")
    found = [_message(item, role, text) for item in items]
    counts.notes["malformed_message_dropped"] += found.count(None)
    return tuple(message for message in found if message is not None)


def _message(item: Any, role: str, text: str) -> Message | None:
    if not isinstance(item, Mapping):
        return None
    speaker, content = ROLES.get(str(item.get(role)).lower()), item.get(text)
    if isinstance(content, list):  # OpenAI's content parts; images have no text
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if speaker is None or not isinstance(content, str):
        return None
    return Message(speaker, content)
