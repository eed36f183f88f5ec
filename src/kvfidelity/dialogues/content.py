"""The language of a conversation, and whether it is mostly code."""

from __future__ import annotations

import re
from collections.abc import Sequence

import py3langid

from kvfidelity.dialogues.pool import Turn

#: Characters of each speaker from which the language is detected.
LANGUAGE_SAMPLE = 3_000
#: A conversation with at least this share of its text in fenced blocks is of category "code".
CODE_SHARE = 0.1
FENCED = re.compile(r"```.*?(?:```|\Z)", flags=re.DOTALL)


def language_of(turns: Sequence[Turn]) -> str:
    """ISO 639-1 code of what both speakers write, detected from a sample of each.

    Code blocks are left out: they look like English in a chat of any language.
    """
    sides = (" ".join(t.user for t in turns), " ".join(t.assistant for t in turns))
    sample = " ".join(FENCED.sub(" ", side)[:LANGUAGE_SAMPLE] for side in sides)
    code: str = py3langid.classify(sample)[0]
    return code


def category_of(turns: Sequence[Turn]) -> str:
    """ "code" if at least a tenth of the text stands in fenced blocks, else "prose"."""
    texts = [text for turn in turns for text in (turn.user, turn.assistant)]
    fenced = sum(len(block) for text in texts for block in FENCED.findall(text))
    return "code" if fenced >= CODE_SHARE * sum(map(len, texts)) > 0 else "prose"
