"""A message that is cut to a number of tokens keeps its characters whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.prompt_cut import cut_to_tokens
from kvfidelity.dialogues.segments import ChatSegmenter
from tests.dialogues.conftest import make_tokenizer

TOKENIZER = make_tokenizer("chatml")


def size(text: str) -> int:
    return len(TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@pytest.mark.parametrize(
    "character", ["\U0001f989", "語", "é", "e\u0308", "\U0001f468\u200d\U0001f469"]
)
def test_no_cut_falls_inside_a_character(character: str) -> None:
    text = "owl " + character * 5
    for limit in range(1, size(text) + 2):
        cut = cut_to_tokens(TOKENIZER, text, limit)
        assert text.startswith(cut) and "\ufffd" not in cut
        assert size(cut) <= limit
    assert cut_to_tokens(TOKENIZER, text, size(text)) == text
    whole = cut_to_tokens(TOKENIZER, "\U0001f989" * 3, 2 * size("\U0001f989"))
    assert whole == "\U0001f989" * 2


@settings(max_examples=100, derandomize=True, database=None)
@given(st.text(max_size=40), st.integers(1, 20))
def test_a_cut_is_the_beginning_and_keeps_its_limit(text: str, limit: int) -> None:
    cut = cut_to_tokens(TOKENIZER, text, limit)
    assert text.startswith(cut) and size(cut) <= limit
    assert cut == text or size(text) > limit


def test_prompts_of_a_run_are_cut_at_a_character(segmenter: ChatSegmenter) -> None:
    turns = [Turn("\U0001f989" * 9, "An owl.")]
    [cut] = segmenter.segments(turns, max_prompt_tokens=6)
    [expected] = segmenter.segments([Turn(cut_to_tokens(TOKENIZER, turns[0].user, 6), "An owl.")])
    assert cut == expected
    decoded: Any = TOKENIZER.decode(list(cut.prompt_ids))
    assert "\ufffd" not in decoded
