"""The position modes: what each does after an eviction, and how it looks in figures.

A new mode is one more member of `PositionMode` and its traits, both in this file. The config
schema, the grid, the Snakefile's wildcards and the figures read them. Nothing heavy is imported, so
that a Snakefile can read them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


def _number_of_slots(slots: int, tokens_seen: int) -> int:
    return slots


def _tokens_seen(slots: int, tokens_seen: int) -> int:
    return tokens_seen


@dataclass(frozen=True)
class ModeTraits:
    """What distinguishes one position mode from the others.

    meaning: for the configuration's documentation.
    next_position: (cached slots, tokens seen) -> the position of the next fed token.
    renumbers: whether an eviction gives the surviving slots the positions 0..n-1. If not, they
        keep the positions that they have.
    colour, marker: in figures; a hex colour that colour-blind readers can tell from the others, and
        a Vega-Lite point shape.
    """

    meaning: str
    next_position: Callable[[int, int], int]
    renumbers: bool
    colour: str
    marker: str


class PositionMode(StrEnum):
    """How positions are handled after an eviction: the factor that the experiment varies.

    The value is the mode's name in the config, in paths, in tables and in figures. Under `STALE`
    new queries can get smaller positions than surviving keys. An unpatched Hugging Face loop does
    this, and arXiv 2511.04686 measured it.
    """

    STALE = "stale"
    ORIGINAL = "original"
    REROTATED = "rerotated"

    @property
    def traits(self) -> ModeTraits:
        """What this mode does and how it looks."""
        return _TRAITS[self]


_TRAITS = {
    PositionMode.STALE: ModeTraits(
        meaning="survivors keep their rotation, the next position is the number of cached slots "
        "(what Hugging Face does if you evict by hand)",
        next_position=_number_of_slots,
        renumbers=False,
        colour="#D55E00",
        marker="circle",
    ),
    PositionMode.ORIGINAL: ModeTraits(
        meaning="survivors keep their position, the next position is the number of tokens seen",
        next_position=_tokens_seen,
        renumbers=False,
        colour="#0072B2",
        marker="square",
    ),
    PositionMode.REROTATED: ModeTraits(
        meaning="the n survivors are rotated to positions 0..n-1, the next position is n",
        next_position=_number_of_slots,
        renumbers=True,
        colour="#009E73",
        marker="triangle-up",
    ),
}


def position_mode_schema() -> dict[str, object]:
    """JSON schema of one position mode, with the meaning of each."""
    meanings = "; ".join(f"`{mode}`: {mode.traits.meaning}" for mode in PositionMode)
    return {"enum": [mode.value for mode in PositionMode], "description": meanings}
