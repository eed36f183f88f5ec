"""Numbers as a reader sees them."""

from __future__ import annotations

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


def percent_range(values: Sequence[float | None]) -> str:
    """ "20%", or "20% to 30%" of several; a dash if all are missing."""
    known = [value for value in values if value is not None]
    low, high = percent(min(known, default=None)), percent(max(known, default=None))
    return low if low == high else f"{low} to {high}"


def p_value(value: float | None) -> str:
    """Three digits, or "< 0.001"."""
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(number: int, noun: str) -> str:
    """ "1 dialogue", "5 dialogues"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
