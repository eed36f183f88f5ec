"""Numbers as a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def signed(value: float | None, digits: int = 3) -> str:
    """ "+4.660", with a true minus sign; a dash for a missing value."""
    if value is None:
        return "\N{EN DASH}"
    rounded = f"{value:+.{digits}f}"
    if float(rounded) == 0:
        return f"{0:.{digits}f}"
    return rounded.replace("-", "\N{MINUS SIGN}")


def interval(row: Mapping[str, Any], digits: int = 3) -> str:
    """ "[+4.1, +5.2]", or why it is missing; `n_dialogues`, if known, decides the reason."""
    if row["low"] is None or row["high"] is None:
        return "no interval" + (" from one dialogue" if row.get("n_dialogues", 1) == 1 else "")
    return f"[{signed(row['low'], digits)}, {signed(row['high'], digits)}]"


def interval_of(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """The interval of the column `name`, whose ends are `name_low` and `name_high`."""
    if row[name] is None:
        return "\N{EN DASH}"
    ends = {end: row[f"{name}_{end}"] for end in ("low", "high")}
    return interval(ends | {"n_dialogues": row["n_dialogues"]}, digits)


def percent(value: float | None) -> str:
    """ "83%"; a dash for a missing value."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.0f}%".replace("-", "\N{MINUS SIGN}")


def decimal(value: float | None, digits: int = 2) -> str:
    """ "4.66"; a dash for a missing value."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def extent(values: Sequence[int | None]) -> str:
    """ "1250", or "1250 to 1500" of several; a dash if all are missing."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "\N{EN DASH}"
    low, high = known[0], known[-1]
    return str(low) if low == high else f"{low} to {high}"


def rounded(value: float | None) -> str:
    """ "0.31", "12.3", "1,234": three digits or whole; a dash for a missing value."""
    if value is None:
        return "\N{EN DASH}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}"


def whole(value: float | None) -> str:
    """ "1,234", of 1233.6; a dash for a missing value."""
    return "\N{EN DASH}" if value is None else f"{value:,.0f}"


def percent_range(values: Sequence[float | None]) -> str:
    """ "20%", or "20% to 30%" of several; a dash if all are missing."""
    known = [value for value in values if value is not None]
    low, high = percent(min(known, default=None)), percent(max(known, default=None))
    return low if low == high else f"{low} to {high}"


def megabytes(size: float | None) -> str:
    """ "14.7 MB", of bytes; a dash for a missing value."""
    return "\N{EN DASH}" if size is None else f"{rounded(size / 1e6)} MB"


def perplexity(nll: float | None) -> str:
    """ "4.63", of nats per token; a dash for a missing value, and from where it says nothing."""
    return "\N{EN DASH}" if nll is None or nll > 20 else rounded(math.exp(nll))


def moment(text: str) -> str:
    """ "2026-11-27 11:06 UTC", of a moment in ISO 8601."""
    return f"{text[:10]} {text[11:16]} UTC"


def day(text: str) -> str:
    """ "2026-11-27", of a moment in ISO 8601."""
    return text[:10]


#: What a reader calls a depth.
DEPTH_NAMES = {
    "early": "the beginning",
    "middle": "the middle",
    "recent": "the latest",
    "unknown": "what is at no stated depth",
}


def depth_name(depth: str) -> str:
    """ "the beginning", of "early"."""
    return DEPTH_NAMES.get(depth, depth)


def cell_text(value: object) -> str:
    """A number of a figure's table with three significant digits; other values as they are."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def p_value(value: float | None) -> str:
    """Three digits, or "< 0.001"."""
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(number: int, noun: str) -> str:
    """ "1 dialogue", "5 dialogues"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
