"""OpenAI's messages: {"id"?, "messages": [{"role": "user", "content": "..."}]}."""

from __future__ import annotations

from typing import Any

from kvfidelity.dialogues.sources.messages import messages_of
from kvfidelity.dialogues.sources.raw import Form, RawConversation, SourceCounts, identity


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    messages = messages_of(record["messages"], "role", "content", counts)
    return RawConversation(identity(record.get("id"), messages), 0, messages)


FORM = Form(
    name="openai",
    about="`messages` of `role` (user, assistant, system) and `content` (a text or text parts)",
    read=_read,
)
