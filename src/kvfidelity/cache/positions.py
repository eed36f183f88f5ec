"""The position modes: what each does after an eviction.

A new mode is one more member of `PositionMode` with its traits here, and its meaning and look in
`report.position_modes`. The config schema, the grid, the Snakefile's wildcards and the figures read
them. Nothing heavy is imported, so that a Snakefile can read them too.
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

    next_position: (cached slots, tokens seen) -> the position of the next fed token.
    renumbers: whether an eviction gives the surviving slots the positions 0..n-1. If not, they
        keep the positions that they have.
    """

    next_position: Callable[[int, int], int]
    renumbers: bool


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
        """What this mode does."""
        return _TRAITS[self]


_TRAITS = {
    PositionMode.STALE: ModeTraits(next_position=_number_of_slots, renumbers=False),
    PositionMode.ORIGINAL: ModeTraits(next_position=_tokens_seen, renumbers=False),
    PositionMode.REROTATED: ModeTraits(next_position=_number_of_slots, renumbers=True),
}
