"""Text metrics against examples computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.metrics.text import (
    compression_ratio,
    echo_share,
    longest_repeat,
    repetition,
    rouge_l,
    text_metrics,
    words_of,
)


def test_worked_examples() -> None:
    assert words_of("It's 4 o'clock, née Müller.") == ["it's", "4", "o'clock", "née", "müller"]
    assert repetition(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(0.6)
    assert repetition(["a"], 2) is None
    assert longest_repeat(["to", "be", "or", "not", "to", "be"]) == 2
    assert longest_repeat(["a", "a", "a", "a"]) == 2  # without overlap
    assert longest_repeat(["all", "are", "distinct", "here"]) == 0
    prompt = words_of("Please tell me about the moon")
    assert echo_share(words_of("Tell me about the sun"), prompt) == pytest.approx(0.8)
    assert rouge_l(["the", "cat", "sat"], ["the", "cat", "lay", "down"]) == pytest.approx(4 / 7)


def test_loops_compress_and_prose_does_not() -> None:
    prose = "The ferry leaves at nine, so we had better eat before the queue at the pier grows."
    loop = "I am sorry. " * 40
    assert (compression_ratio(loop) or 0) > 8 > 2 > (compression_ratio(prose) or 9)


def test_a_reply_is_measured_against_prompt_and_reference() -> None:
    found = text_metrics("The cat sat.", "Where?", "The cat sat.")
    assert found.chrf == pytest.approx(100)
    assert found.rouge_l == 1
    assert found.echo_share == 0


def test_a_missing_reply_has_no_values() -> None:
    assert set(vars(text_metrics(None, "a", "b")).values()) == {None}
    assert text_metrics("", "a", "b").rep_2 is None


@given(st.text(max_size=300), st.text(max_size=100), st.text(max_size=100))
def test_shares_are_between_0_and_1(reply: str, prompt: str, reference: str) -> None:
    reply, prompt, reference = (
        t.encode("utf-8", "ignore").decode() for t in (reply, prompt, reference)
    )
    found = text_metrics(reply, prompt, reference)
    for value in (found.rep_2, found.rep_3, found.rep_4, found.echo_share, found.rouge_l):
        assert value is None or 0 <= value <= 1
    assert found.chrf is not None and 0 <= found.chrf <= 100 + 1e-9


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_longest_repeat_equals_brute_force(words: list[str]) -> None:
    best = 0
    for length in range(1, len(words) // 2 + 1):
        for i in range(len(words) - 2 * length + 1):
            for j in range(i + length, len(words) - length + 1):
                if words[i : i + length] == words[j : j + length]:
                    best = length
    assert longest_repeat(words) == (best if words else None)
