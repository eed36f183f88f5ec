"""Near duplicates: found by overlap of five-word runs, the same in every process."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from kvfidelity.dialogues.duplicates import ExactDuplicates, NearDuplicates
from kvfidelity.dialogues.pool import Turn

SCRIPT = """
from kvfidelity.dialogues.duplicates import NearDuplicates
from kvfidelity.dialogues.pool import Turn
words = [f"w{n * n % 1009}" for n in range(400)]
near = NearDuplicates(0.5)
print([near.seen_before([Turn(" ".join(words[:300 + k]), " ".join(words[k * k:]))])
       for k in range(20)])
"""


def words(seed: int, count: int = 600) -> list[str]:
    draw = random.Random(seed)
    return [f"word{draw.randrange(5000)}" for _ in range(count)]


@pytest.mark.parametrize(("replaced", "expected"), [(0, True), (20, True), (300, False)])
def test_overlap_decides(replaced: int, expected: bool) -> None:
    """20 fresh words at the end leave 576 of 616 runs shared (0.94), 300 leave a third."""
    near = NearDuplicates(0.8)
    first = words(1)
    changed = first[: len(first) - replaced] + words(2, replaced)
    assert not near.seen_before([Turn(" ".join(first), "ok")])
    assert near.seen_before([Turn(" ".join(changed), "ok")]) is expected


def test_where_turns_are_cut_does_not_matter_to_nearness_but_to_exactness() -> None:
    one, other = [Turn("a b c d", "e f g h")], [Turn("a b", "c d e f g h")]
    near, exact = NearDuplicates(0.8), ExactDuplicates()
    assert not near.seen_before(one) and near.seen_before(other)
    assert not exact.seen_before(one) and not exact.seen_before(other) and exact.seen_before(one)


def test_texts_without_a_word_are_compared_too() -> None:
    near = NearDuplicates(0.8)
    assert not near.seen_before([Turn("?!", "...")])
    assert near.seen_before([Turn("!?", "---")])
    assert not near.seen_before([Turn("words at last", "yes")])


def test_every_process_finds_the_same() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1
    assert "True" in found.pop()
