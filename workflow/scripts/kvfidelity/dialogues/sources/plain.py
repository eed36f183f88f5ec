"""Plain: {"id"?, "turns": ["first speaker", "second speaker", "first again", ...]}."""

from __future__ import annotations

from typing import Any

from kvfidelity.dialogues.sources.raw import (
    Form,
    Message,
    RawConversation,
    SourceCounts,
    identity,
)


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    turns = record["turns"]
    if not isinstance(turns, list):
        raise TypeError("no list of turns")
    messages = []
    for place, text in enumerate(turns):
        if isinstance(text, str):
            messages.append(Message("assistant" if place % 2 else "user", text))
        else:
            counts.notes["malformed_message_dropped"] += 1
    return RawConversation(identity(record.get("id"), messages), 0, tuple(messages))


FORM = Form(name="plain", about="`turns`, a list of texts by alternating speakers", read=_read)
