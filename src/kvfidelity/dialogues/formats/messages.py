"""Reads lists of messages, whatever their keys are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.dialogues.formats.raw import Message

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
#: What is no message: no object, no role, or no text.
MALFORMED = Message("", "")


def messages_of(items: Any, role: str, text: str) -> tuple[Message, ...]:
    """Messages of a list of objects with the keys `role` and `text`, one for each item.

    Raises:
        TypeError: `items` is not a list.
    """
    if not isinstance(items, list | tuple):
        raise TypeError("not a list of messages")
    return tuple(_message(item, role, text) for item in items)


def message(role: str | None, text: Any) -> Message:
    """A message of a known role; malformed if one of the two is missing."""
    return Message(role, text) if role and isinstance(text, str) else MALFORMED


def _message(item: Any, role: str, text: str) -> Message:
    if not isinstance(item, Mapping) or not isinstance(item.get(role), str):
        return MALFORMED
    name, content = item[role].strip(), item.get(text)
    speaker = ROLES.get(name.lower(), name)
    left_out = 0
    if isinstance(content, list):  # OpenAI's content parts; images have no text
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        kept = [part for part in texts if isinstance(part, str)]
        left_out, content = len(content) - len(kept), "\n".join(kept)
    if content is None and (item.get("tool_calls") or item.get("function_call")):
        return Message("tool_calls", "")
    return Message(speaker, content, left_out) if isinstance(content, str) else MALFORMED
