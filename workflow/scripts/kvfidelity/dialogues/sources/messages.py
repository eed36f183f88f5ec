"""From one record to a raw conversation: ShareGPT's and OpenAI's forms, recognised by their keys.

ShareGPT: {"id", "conversations": [{"from": "human", "value": "..."}]}.
OpenAI: {"id"?, "messages": [{"role": "user", "content": "..."}]}; a content may be a list of parts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from kvfidelity.dialogues.sources.raw import Message, RawConversation, SourceCounts

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
SPLIT_ID = re.compile(r"(.+)_(\d+)")


def conversation_of(
    record: Any, form: str, split: bool, counts: SourceCounts
) -> RawConversation | None:
    """A record as a raw conversation, or None with the reason counted.

    Args:
        form: "sharegpt" or "openai".
        split: whether ids end in the index of the segment's first message.
    """
    items = _items(record, form)
    if items is None:
        counts.dropped["malformed_record"] += 1
        return None
    messages = []
    for item in items:
        message = _message(item, form, counts)
        if message is not None:
            messages.append(message)
    name, start = _identity(record, messages), 0
    found = SPLIT_ID.fullmatch(name) if split else None
    if found:
        name, start = found[1], int(found[2])
    return RawConversation(name, start, tuple(messages))


def _items(record: Any, form: str) -> list[Any] | None:
    key = "conversations" if form == "sharegpt" else "messages"
    items = record.get(key) if isinstance(record, Mapping) else None
    return list(items) if isinstance(items, list | tuple) else None


def _message(item: Any, form: str, counts: SourceCounts) -> Message | None:
    names = ("from", "value") if form == "sharegpt" else ("role", "content")
    if not isinstance(item, Mapping):
        counts.notes["malformed_message_dropped"] += 1
        return None
    role, text = ROLES.get(str(item.get(names[0])).lower()), item.get(names[1])
    if isinstance(text, list):
        text = "\n".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    if role is None or not isinstance(text, str):
        counts.notes["malformed_message_dropped"] += 1
        return None
    return Message(role, text)


def _identity(record: Mapping[str, Any], messages: list[Message]) -> str:
    given = record.get("id", record.get("conversation_id"))
    if isinstance(given, str | int) and str(given).strip():
        return str(given)
    content = "\0".join(message.text for message in messages)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
