"""Finds conversations that equal, or nearly equal, an earlier one.

Memory is bounded for files of any size: exact copies are found by 16-byte digests, up to a maximum
number; near copies are searched only among the chosen dialogues.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from rensa import RMinHash, RMinHashLSH

from kvfidelity.dialogues.pool import Turn

#: Digests remembered, about 90 bytes each. Beyond that, an exact copy is still found as a near one.
MAX_DIGESTS = 4_000_000
SHINGLE_WORDS = 5
PERMUTATIONS, BANDS, SEED = 128, 32, 1


class ExactDuplicates:
    """Knows conversations by a digest of their text."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen_before(self, turns: Sequence[Turn]) -> bool:
        """Whether the same turns came before; remembers them if not."""
        text = "\0".join(f"{turn.user}\0{turn.assistant}" for turn in turns)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._seen:
            return True
        if len(self._seen) < MAX_DIGESTS:
            self._seen.add(digest)
        return False


class NearDuplicates:
    """Knows conversations by MinHash over their runs of five words.

    Args:
        similarity: estimated Jaccard index from which on two are near duplicates. Bands of four
            rows find a pair at 0.8 with probability 1 - (1 - 0.8^4)^32 > 0.9999, at 0.5 with 0.87.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._index = RMinHashLSH(similarity, PERMUTATIONS, BANDS)
        self._sketches: list[RMinHash] = []

    def seen_before(self, turns: Sequence[Turn]) -> bool:
        """Whether a nearly equal conversation came before; remembers this one if not."""
        sketch = RMinHash(PERMUTATIONS, SEED)
        sketch.update(_shingles(turns))
        for key in self._index.query(sketch):
            if self._sketches[key].jaccard(sketch) >= self._similarity:
                return True
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return False


def _shingles(turns: Sequence[Turn]) -> list[str]:
    text = " ".join(f"{turn.user} {turn.assistant}" for turn in turns).lower()
    words = re.findall(r"\w+", text)
    return [
        " ".join(words[i : i + SHINGLE_WORDS])
        for i in range(max(1, len(words) - SHINGLE_WORDS + 1))
    ]
