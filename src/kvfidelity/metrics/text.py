"""Properties of a reply's text: repetition, echo of the prompt, overlap with a reference.

A word is a maximal sequence of letters, digits and apostrophes, in lower case. Measures in words
are missing for a reply without words.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.chrf import CHRF

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
ECHO = 4


@dataclass(frozen=True)
class TextMetrics:
    """Text metrics of one reply; None where a value is missing.

    The columns are declared in `records.columns.TextMetrics`.

    rep_2, rep_3, rep_4: share of word n-grams that are repeats, 1 - distinct / all (Welleck et al.
        2020, arXiv 1908.04319).
    longest_repeat_words: length of the longest span of words that occurs twice without overlap.
    compression_ratio: UTF-8 bytes divided by the bytes of their zlib form; about 2 for prose, far
        more for loops.
    echo_share: share of the reply's words inside sequences of at least four words that occur in the
        prompt.
    chrf: chrF2 against the reference, 0 to 100 (sacrebleu).
    rouge_l: F1 of the longest common subsequence of words with the reference, 0 to 1.
    """

    rep_2: float | None
    rep_3: float | None
    rep_4: float | None
    longest_repeat_words: int | None
    compression_ratio: float | None
    echo_share: float | None
    chrf: float | None
    rouge_l: float | None


def text_metrics(reply: str | None, prompt: str, reference: str | None) -> TextMetrics:
    """Measure a reply; every value of a missing reply is missing."""
    if reply is None:
        return TextMetrics(*[None] * 8)
    words = words_of(reply)
    overlap = None if reference is None else rouge_l(words, words_of(reference))
    return TextMetrics(
        rep_2=repetition(words, 2),
        rep_3=repetition(words, 3),
        rep_4=repetition(words, 4),
        longest_repeat_words=longest_repeat(words),
        compression_ratio=compression_ratio(reply),
        echo_share=echo_share(words, words_of(prompt)),
        chrf=None if reference is None else float(CHRF().sentence_score(reply, [reference]).score),
        rouge_l=overlap,
    )


def words_of(text: str) -> list[str]:
    """ "It's 4 o'clock." -> ["it's", "4", "o'clock"]."""
    return [found[0].lower() for found in WORD.finditer(text)]


def repetition(words: Sequence[str], n: int) -> float | None:
    """rep-n; None if there are fewer than n words.

    "a b a b a b" has bigrams ab ba ab ba ab: 2 distinct of 5, so rep-2 is 0.6.
    """
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def longest_repeat(words: Sequence[str]) -> int | None:
    """Length of the longest span that occurs twice without overlap.

    "to be or not to be" -> 2. By bisection: if a span repeats, all its prefixes do.
    """
    if not words:
        return None
    low, high = 0, len(words) // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _repeats(words, middle) else (low, middle - 1)
    return low


def compression_ratio(text: str) -> float | None:
    """Bytes of the text per byte of its zlib form; None for an empty text."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None


def echo_share(words: Sequence[str], prompt: Sequence[str]) -> float | None:
    """Share of words inside sequences of at least four words that occur in the prompt.

    Prompt "please tell me about the moon", reply "tell me about the sun": 4 of 5 words, 0.8.
    """
    if not words:
        return None
    known = {tuple(prompt[i : i + ECHO]) for i in range(len(prompt) - ECHO + 1)}
    copied = [False] * len(words)
    for start in range(len(words) - ECHO + 1):
        if tuple(words[start : start + ECHO]) in known:
            copied[start : start + ECHO] = [True] * ECHO
    return sum(copied) / len(words)


def rouge_l(words: Sequence[str], reference: Sequence[str]) -> float | None:
    """F1 of the longest common subsequence; None if one of them has no words.

    "the cat sat" against "the cat lay down": 2 common, precision 2/3, recall 2/4, F1 4/7.
    """
    if not words or not reference:
        return None
    return 2 * LCSseq.similarity(words, reference) / (len(words) + len(reference))


def _repeats(words: Sequence[str], length: int) -> bool:
    first: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - length + 1):
        span = tuple(words[start : start + length])
        if start - first.setdefault(span, start) >= length:
            return True
    return False
