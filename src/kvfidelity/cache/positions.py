"""What the position modes mean; imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum


class PositionMode(StrEnum):
    """How positions are handled after an eviction (DESIGN terms; the experimental factor).

    STALE: survivors keep their rotation, the next position is the number of cached slots, so new
        queries can stand behind surviving keys. What an unpatched Hugging Face loop does, and the
        setting of arXiv 2511.04686.
    ORIGINAL: survivors keep their position, the next position is the number of tokens seen.
    REROTATED: survivors move to 0..n-1, the next position is n.
    """

    STALE = "stale"
    ORIGINAL = "original"
    REROTATED = "rerotated"
