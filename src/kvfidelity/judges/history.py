"""Cuts a conversation to what a judge's context holds: whole messages, from the middle outwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Bytes of a token, low enough that a text is seldom longer than estimated.
TOKEN_BYTES = 3


def messages_of(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The messages of earlier turns, as they are shown.

    Args:
        history: rows with `prompt` and `fed_reply`, what entered the cache.
    """
    return [
        text
        for turn in history
        for text in (f"user: {turn['prompt']}", f"assistant: {turn['fed_reply']}")
    ]


def messages_cut(history: Sequence[Mapping[str, Any]], tokens: int) -> tuple[int, int]:
    """Which messages do not fit, as the first of them and the one after the last.

    Messages are kept from both ends in turn, the latest first, as long as they fit. Every policy's
    run gets the same cut of the same dialogue: a reply counts as long as the dataset's, also where
    a shorter or longer one of the model's own is shown.

    Args:
        history: rows with `prompt`, `fed_reply` and, if there is one, `reference`.
        tokens: for the conversation.
    """
    sizes = [
        len(text.encode("utf-8", "replace")) // TOKEN_BYTES + 5
        for turn in history
        for text in (str(turn["prompt"]), str(turn.get("reference") or turn["fed_reply"]))
    ]
    if sum(sizes) <= tokens:
        return 0, 0
    first, stop, left = 0, len(sizes), tokens
    end_fits = start_fits = True
    while end_fits or start_fits:
        if end_fits and (end_fits := first < stop and sizes[stop - 1] <= left):
            stop -= 1
            left -= sizes[stop]
        if start_fits and (start_fits := first < stop and sizes[first] <= left):
            left -= sizes[first]
            first += 1
    return first, stop


def conversation(history: Sequence[Mapping[str, Any]], cut: tuple[int, int] = (0, 0)) -> str:
    """The conversation without the messages that are cut, which it says."""
    texts = messages_of(history)
    first, stop = cut
    if stop > first:
        texts[first:stop] = [f"[{stop - first} messages are left out here]"]
    return "\n\n".join(texts)
