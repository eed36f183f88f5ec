"""Plain: {"id"?, "turns": ["first speaker", "second speaker", "first again", ...]}."""

from __future__ import annotations

from typing import Any

from kvfidelity.dialogues.formats.messages import message
from kvfidelity.dialogues.formats.raw import (
    Format,
    RawConversation,
    SourceCounts,
    conversation_id,
)


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    turns = record["turns"]
    if not isinstance(turns, list):
        raise TypeError("`turns` is not a list")
    messages = tuple(
        message("assistant" if index % 2 else "user", text) for index, text in enumerate(turns)
    )
    return RawConversation(conversation_id(record.get("id"), messages), 0, messages)


FORMAT = Format(
    name="plain", summary="`turns`, a list of texts by alternating speakers", read=_read
)
