"""Reads JSON that others wrote: nothing in it crashes the reader or is guessed."""

from __future__ import annotations

import json
from typing import Any

from kvfidelity.bounded_json import refuse_excess

#: Digits of a number. An absurd one loses no answer; Python itself refuses more than 4,300.
MAX_DIGITS = 4000


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, has a number of thousands of digits, or an
            object that gives two values to one key.
    """
    refuse_excess(text, MAX_DIGITS)
    return json.loads(text, object_pairs_hook=_object)


def leading_json(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at a position, and where it ends; raises as `parse_json` does."""
    try:
        return json.JSONDecoder(object_pairs_hook=_object).raw_decode(text, start)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate, which no file can hold, replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


class ContradictionError(ValueError):
    """An object gives two values to one key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ContradictionError(f"{key} is given as {found[key]!r} and as {value!r}"[:200])
        found[key] = value
    return found
