"""Cuts a message to a number of tokens, at a character."""

from __future__ import annotations

from typing import Any


def cut_to_tokens(tokenizer: Any, text: str, limit: int) -> str:
    """The longest beginning of `text` found by its tokens' offsets that has at most `limit` tokens.

    A character whose bytes lie in several tokens is kept whole or not at all, so the text is never
    changed before the cut. A beginning can have more tokens than it had in the whole text; then
    the cut goes one token further to the front, until it fits.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        limit: tokens, without special ones.
    """
    encoded = _encode(tokenizer, text)
    if len(encoded["input_ids"]) <= limit:
        return text
    offsets = encoded["offset_mapping"]
    for kept in range(limit, 0, -1):
        end = offsets[kept - 1][1]
        # A later token that begins before this end holds the rest of a character.
        if offsets[kept][0] < end:
            end = offsets[kept][0]
        if len(_encode(tokenizer, text[:end])["input_ids"]) <= limit:
            return text[:end]
    return ""


def _encode(tokenizer: Any, text: str) -> Any:
    return tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
