"""What an error about an unknown name adds: the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The nearest known name, or all of them; follows "unknown ..." in a message."""
    known = sorted(known)
    return nearest(name, known) or f"; known: {', '.join(known)}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The nearest known name; "" if no name is near, for messages that list all names."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
