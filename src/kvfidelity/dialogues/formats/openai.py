"""OpenAI's messages: {"id"?, "messages": [{"role": "user", "content": "..."}]}.

The list may also be called `conversation`, as in LMSYS-Chat-1M and WildChat.
"""

from __future__ import annotations

from typing import Any

from kvfidelity.dialogues.formats.messages import messages_of
from kvfidelity.dialogues.formats.raw import Format, RawConversation, SourceCounts, conversation_id


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    items = record["messages"] if "messages" in record else record["conversation"]
    messages = messages_of(items, "role", "content")
    name = record.get("id", record.get("conversation_id", record.get("conversation_hash")))
    return RawConversation(conversation_id(name, messages), 0, messages)


FORMAT = Format(
    name="openai",
    summary="`messages` or `conversation` of `role` and `content`, a text or text parts",
    read=_read,
)
