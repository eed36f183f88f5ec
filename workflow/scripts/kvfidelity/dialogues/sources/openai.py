"""OpenAI's messages: {"id"?, "messages": [{"role": "user", "content": "..."}]}.

The list may also be called `conversation`, as in LMSYS-Chat-1M and WildChat.
"""

from __future__ import annotations

from typing import Any

from kvfidelity.dialogues.sources.messages import messages_of
from kvfidelity.dialogues.sources.raw import Form, RawConversation, SourceCounts, identity


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    items = record["messages"] if "messages" in record else record["conversation"]
    messages = messages_of(items, "role", "content", counts)
    name = record.get("id", record.get("conversation_id", record.get("conversation_hash")))
    return RawConversation(identity(name, messages), 0, messages)


FORM = Form(
    name="openai",
    about="`messages` or `conversation` of `role` and `content`, a text or text parts",
    read=_read,
)
