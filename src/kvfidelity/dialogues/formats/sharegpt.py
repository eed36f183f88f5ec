"""ShareGPT: {"id", "conversations": [{"from": "human", "value": "..."}]}."""

from __future__ import annotations

import re
from typing import Any

from kvfidelity.dialogues.formats.messages import messages_of
from kvfidelity.dialogues.formats.raw import Format, RawConversation, SourceCounts, conversation_id

# Long conversations are split into segments: `<conversation>_<index of first message>`. Other ids
# look like that too; `files` joins only what fits.
SPLIT_ID = re.compile(r"(.+)_([0-9]{1,9})", flags=re.DOTALL)


def _read(record: Any, counts: SourceCounts) -> RawConversation:
    messages = messages_of(record["conversations"], "from", "value")
    name = conversation_id(record.get("id"), messages)
    found = SPLIT_ID.fullmatch(name)
    if found is None or name != record.get("id"):
        return RawConversation(name, 0, messages)
    return RawConversation(found[1], int(found[2]), messages, record_id=name)


FORMAT = Format(
    name="sharegpt",
    summary="`id`, `conversations` of `from` (human, gpt) and `value`; split segments are rejoined",
    read=_read,
    published="hub: anon8231489123/ShareGPT_Vicuna_unfiltered",
)
