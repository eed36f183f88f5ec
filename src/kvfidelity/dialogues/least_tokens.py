"""A number of tokens that a text has at least, without encoding it.

Most dialogues of a large file are too long for a selection. If no token of the vocabulary reaches
from one word into the next, a text has at least as many tokens as words, and counting words is a
hundred times as fast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

#: A byte-level vocabulary writes each byte as one character: ASCII's white space becomes these.
SPACES = "\u0109-\u010d\u0120"
TWO_WORDS = re.compile(f"[^{SPACES}][{SPACES}]+[^{SPACES}]")
#: Normalizers that neither drop a character nor turn one into white space.
HARMLESS = (None, "NFC")


def tokens_keep_words_apart(backend: Any) -> bool:
    """Whether no token has parts of two words, divided by ASCII white space.

    Args:
        backend: a tokenizer of the `tokenizers` library. Only byte-level BPE is known here: it has
            a token for every byte, so it leaves nothing of a text out.
    """
    state = json.loads(backend.to_str())
    normalizer = (state.get("normalizer") or {}).get("type")
    split = json.dumps(state.get("pre_tokenizer"))
    if state["model"]["type"] != "BPE" or normalizer not in HARMLESS or '"ByteLevel"' not in split:
        return False
    added = {entry["content"] for entry in state["added_tokens"]}
    return not any(
        len(content.split()) > 1 if content in added else TWO_WORDS.search(content)
        for content in (*state["model"]["vocab"], *added)
    )


def least_tokens(messages: Iterable[str]) -> int:
    """Tokens of a rendered conversation, at least, if tokens keep words apart.

    What a template writes may join the last word of one message to the first of the next, so one
    word a message is not counted.
    """
    # Bytes are split at ASCII's white space alone.
    return sum(max(0, len(text.encode().split()) - 1) for text in messages)
