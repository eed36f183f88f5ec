"""MultiWOZ: short task dialogues, to be joined into long sessions with `join_tokens`.

Published 2.1 (arXiv 1907.01669): one object whose keys are names, values {"log": [{"text"}, ...]}
with the user first. Published 2.2 (arXiv 2007.12720): {"dialogue_id", "turns": [{"speaker": "USER",
"utterance"}]}; on the hub its turns are columns, {"speaker": [0, 1], "utterance": [...]}.
Also read: ShareGPT's format, in which copies of the set exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.dialogues.formats.messages import message, messages_of
from kvfidelity.dialogues.formats.raw import (
    Format,
    Message,
    RawConversation,
    SourceCounts,
    conversation_id,
)

SPEAKERS = {"USER": "user", "SYSTEM": "assistant", "0": "user", "1": "assistant"}


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    if "conversations" in record:
        messages = messages_of(record["conversations"], "from", "value")
    elif "log" in record:
        messages = _alternating(record["log"])
    else:
        messages = _spoken(record["turns"])
    return RawConversation(
        conversation_id(record.get("dialogue_id", record.get("id")), messages), 0, messages
    )


def _alternating(log: Any) -> tuple[Message, ...]:
    if not isinstance(log, list):
        raise TypeError("`log` is not a list")
    pairs = [("assistant" if index % 2 else "user", item) for index, item in enumerate(log)]
    return tuple(message(role, _get(item, "text")) for role, item in pairs)


def _spoken(turns: Any) -> tuple[Message, ...]:
    if isinstance(turns, Mapping):
        pairs = list(zip(turns["speaker"], turns["utterance"], strict=True))
    elif isinstance(turns, list):
        pairs = [(_get(item, "speaker"), _get(item, "utterance")) for item in turns]
    else:
        raise TypeError("`turns` is neither list nor columns")
    return tuple(message(_role(speaker), text) for speaker, text in pairs)


def _role(speaker: Any) -> str | None:
    return SPEAKERS.get(str(speaker), speaker if isinstance(speaker, str) else None)


def _get(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, Mapping) else None


FORMAT = Format(
    name="multiwoz",
    summary="2.1: objects with a `log`; 2.2: `turns` of `speaker` and `utterance`",
    read=_read,
    published="https://github.com/budzianowski/multiwoz",
)
