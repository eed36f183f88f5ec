"""The position modes: what each does after an eviction.

A new mode is one more member of `PositionMode` with its traits here, and its meaning and look in
`report.position_modes`. The config schema, the grid, the Snakefile's wildcards and the figures read
them. Nothing heavy is imported, so that a Snakefile can read them too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from kvfidelity.errors import UserError

#: Names of the modes that are `original` with one offset error for all survivors, see `shifted`.
SHIFTED_PATTERN = r"shifted(\+0|[+-][1-9][0-9]{0,5})"


def _number_of_slots(slots: int, tokens_seen: int, evicted: bool) -> int:
    return slots


def _tokens_seen(slots: int, tokens_seen: int, evicted: bool) -> int:
    return tokens_seen


def _shifted(shift: int, slots: int, tokens_seen: int, evicted: bool) -> int:
    position = tokens_seen + (shift if evicted else 0)
    if position < 0:
        raise UserError(
            f"positions {shifted_name(shift)}: after {tokens_seen} tokens the next position would "
            f"be {position}; evict later, or shift by at least -{tokens_seen}"
        )
    return position


@dataclass(frozen=True)
class ModeTraits:
    """What distinguishes one position mode from the others.

    next_position: (cached slots, tokens seen, whether something was evicted) -> the position of the
        next fed token. A kv head may hold all tokens where other heads had to evict.
    renumbers: whether an eviction gives the surviving slots the positions 0..n-1. If not, they
        keep the positions that they have.
    shift: how many positions farther than their true offset the survivors of the first eviction
        are from all later tokens; None for a mode that is not `shifted`.
    """

    next_position: Callable[[int, int, bool], int]
    renumbers: bool
    shift: int | None = None


class PositionMode(StrEnum):
    """How positions are handled after an eviction: the factor that the experiment varies.

    The value is the mode's name in the config, in paths, in tables and in figures. Under `STALE`
    new queries can get smaller positions than surviving keys. An unpatched Hugging Face loop does
    this, and arXiv 2511.04686 measured it.

    Besides the members there is one mode for each number d, `PositionMode("shifted-512")` or
    `PositionMode("shifted+64")`: positions are those of `ORIGINAL`, and from the first eviction on
    the next position is the number of tokens seen plus d. So one keep set meets every effective
    offset of a survivor moved by d, and tokens fed after the eviction have true offsets to each
    other. `shifted+0` is `ORIGINAL`; minus the number of evicted tokens is `STALE` after one
    eviction. Iterating gives the members alone.
    """

    STALE = "stale"
    ORIGINAL = "original"
    REROTATED = "rerotated"

    @classmethod
    def _missing_(cls, value: object) -> PositionMode | None:
        if not isinstance(value, str) or not re.fullmatch(SHIFTED_PATTERN, value):
            return None
        mode = str.__new__(cls, value)
        mode._name_ = mode._value_ = value
        # As `Flag` does for values that no member has: the same object each time.
        return cls._value2member_map_.setdefault(value, mode)  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: object) -> tuple[type[PositionMode], tuple[str]]:
        # By value: in Python 3.11.2 an enum is copied by the name of a member.
        return type(self), (self._value_,)

    @classmethod
    def patterns(cls) -> list[str]:
        """Regular expressions that match every mode's name, and nothing else."""
        return [*(re.escape(mode) for mode in cls), SHIFTED_PATTERN]

    @property
    def traits(self) -> ModeTraits:
        """What this mode does."""
        if self in _TRAITS:
            return _TRAITS[self]
        shift = int(self.removeprefix("shifted"))
        return ModeTraits(partial(_shifted, shift), renumbers=False, shift=shift)


_TRAITS = {
    PositionMode.STALE: ModeTraits(next_position=_number_of_slots, renumbers=False),
    PositionMode.ORIGINAL: ModeTraits(next_position=_tokens_seen, renumbers=False),
    PositionMode.REROTATED: ModeTraits(next_position=_number_of_slots, renumbers=True),
}


def shifted_name(shift: int) -> str:
    """The name of the mode that moves effective offsets by `shift`, such as shifted+64."""
    return f"shifted{shift:+d}"


def check_shift(mode: PositionMode, threshold: int | None) -> None:
    """Refuse a shift that can lead below position 0, before anything is computed.

    Args:
        threshold: cached slots from which on something is evicted; None: never.

    Raises:
        UserError: it can.
    """
    if mode.traits.shift is not None and threshold is not None:
        mode.traits.next_position(threshold - 1, threshold, True)
