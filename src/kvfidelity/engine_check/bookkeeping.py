"""Ways to keep positions after an eviction: the three modes, no eviction, and known faults.

Each is integers only: which tokens stay, which position each surviving key is rotated by, and which
position comes next. `engine_table` applies one of them to a core cache. Nothing heavy is imported:
a verdict is reached without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvfidelity.cache.positions import PositionMode

#: Half-open ranges of token indices, in order: [[0, 4], [100, 128]].
Ranges = Sequence[Sequence[int]]
#: (positions before, slots before, slots after, evicted slots) -> positions after; int64 [L', G',
#: k], slots after [k]. The slot before is where mode `rerotated` would have had the key.
Ints = NDArray[np.int64]
Moved = Callable[[Ints, Ints, Ints, int], Ints]
#: (cached slots, tokens seen, evictions so far) -> the position of the next fed token.
NextPosition = Callable[[int, int, int], int]


def _kept(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return old


def _renumbered(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return np.broadcast_to(new, old.shape)


def _rotated_twice(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return old + new


def _rotated_backwards(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return old - (new - slots)


def _only_sinks_moved(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return np.where(slots == new, old - evicted, old)


def _moved_as_first_head(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return old + (new - slots[:, :1])


def _those_of_first_head(old: Ints, slots: Ints, new: Ints, evicted: int) -> Ints:
    return np.broadcast_to(old[:, :1], old.shape)


def _cached(shift: int = 0) -> NextPosition:
    return lambda slots, seen, evictions: slots + shift


def _seen(shift: int = 0) -> NextPosition:
    return lambda slots, seen, evictions: seen + shift * evictions


_TOKENS_SEEN = _seen()


@dataclass(frozen=True)
class Bookkeeping:
    """One way to keep positions.

    name: as it stands in a probe set. mode: the position mode that it is, or is a fault of; None
    for `full`. look_for: what an engine's developer should look for. leaves_out: how many of the
    first tokens of each keep set are evicted all the same. shift_base: the RoPE base that moves a
    key to its new position; None is the model's own.
    """

    name: str
    mode: PositionMode | None
    look_for: str
    moved: Moved = _kept
    next_position: NextPosition = _TOKENS_SEEN
    leaves_out: int = 0
    shift_base: float | None = None

    @property
    def evicts(self) -> bool:
        """Whether it evicts at all."""
        return self.mode is not None

    @property
    def is_fault(self) -> bool:
        """Whether it is neither a position mode nor `full`."""
        return self.name not in MODES


#: The RoPE base of the first models, and of code that does not read it from a config.
USUAL_BASE = 10_000.0
FULL = "full"
#: What an engine can implement, as opposed to a fault.
MODES = (FULL, *(mode.value for mode in PositionMode))
#: Modes whose positions are correct.
CORRECT = (PositionMode.ORIGINAL.value, PositionMode.REROTATED.value)

_MODES = {
    PositionMode.STALE: (
        "the next position equals the cached length, but surviving keys keep their old rotation: "
        "count positions apart from cached rows, or rotate survivors to 0..n-1",
        _kept,
        _cached,
    ),
    PositionMode.ORIGINAL: ("nothing", _kept, _seen),
    PositionMode.REROTATED: ("nothing", _renumbered, _cached),
}


def _modes() -> list[Bookkeeping]:
    return [
        Bookkeeping(mode.value, mode, look_for, moved, next_position())
        for mode, (look_for, moved, next_position) in _MODES.items()
    ]


def _corrected() -> list[tuple[PositionMode, Moved, Callable[..., NextPosition]]]:
    return [(mode, *_MODES[mode][1:]) for mode in map(PositionMode, CORRECT)]


def _off_by_one() -> list[Bookkeeping]:
    return [
        Bookkeeping(
            f"{mode.value}_next_{name}",
            mode,
            f"the next position is {words} than in mode {mode.value} after each eviction: off by "
            "one where the position of the next token is set",
            moved,
            next_position(shift),
        )
        for mode, moved, next_position in _corrected()
        for shift, name, words in ((1, "too_large", "one larger"), (-1, "too_small", "one smaller"))
    ]


def _sinks_left_out() -> list[Bookkeeping]:
    return [
        Bookkeeping(
            f"{mode.value}_without_{name}",
            mode,
            f"{words} of the keep set is missing, else as mode {mode.value}: the range of evicted "
            "slots starts too early, or the first block is given back",
            moved,
            next_position(),
            leaves_out=count,
        )
        for mode, moved, next_position in _corrected()
        for count, name, words in (
            (1, "first", "the first token"),
            (4, "first_four", "each of the first four tokens"),
        )
    ]


def _other_faults() -> list[Bookkeeping]:
    rerotated, original = PositionMode.REROTATED, PositionMode.ORIGINAL
    return [
        Bookkeeping(
            "rotated_twice",
            rerotated,
            "the rotation of the new position is applied to keys that are rotated already: cache "
            "un-rotated keys, or rotate by the difference of new and old position",
            _rotated_twice,
            _cached(),
        ),
        Bookkeeping(
            "rotated_backwards",
            rerotated,
            "keys are rotated by old minus new position: the sign of the shift is wrong",
            _rotated_backwards,
            _cached(),
        ),
        Bookkeeping(
            "rerotated_next_seen",
            rerotated,
            "survivors are rotated to 0..n-1, but the next position is still the number of tokens "
            "seen: set it to the cached length too",
            _renumbered,
            _seen(),
        ),
        Bookkeeping(
            "rerotated_usual_base",
            rerotated,
            f"keys are moved to 0..n-1 with RoPE base {USUAL_BASE:,.0f}, which is not this model's "
            "(read `rope_theta` from its config)",
            _renumbered,
            _cached(),
            shift_base=USUAL_BASE,
        ),
        Bookkeeping(
            "rerotated_usual_base_next_seen",
            rerotated,
            f"keys are moved to 0..n-1 with RoPE base {USUAL_BASE:,.0f}, which is not this model's "
            "(read `rope_theta` from its config), and the next position is still the number of "
            "tokens seen (set it to the cached length too)",
            _renumbered,
            _seen(),
            shift_base=USUAL_BASE,
        ),
        Bookkeeping(
            "only_sinks_rerotated",
            rerotated,
            "the shift is applied to the sinks at the beginning and not to the slots after them: "
            "the range of shifted slots is wrong",
            _only_sinks_moved,
            _cached(),
        ),
        Bookkeeping(
            "rerotated_as_first_head",
            rerotated,
            "heads keep different tokens, but all are rotated by the shifts of the first head: "
            "keep positions per head",
            _moved_as_first_head,
            _cached(),
        ),
        Bookkeeping(
            "original_of_first_head",
            original,
            "heads keep different tokens, but all keys get the positions of the first head: keep "
            "positions per head",
            _those_of_first_head,
            _seen(),
        ),
    ]


BOOKKEEPINGS: tuple[Bookkeeping, ...] = (
    Bookkeeping(
        FULL, None, "nothing is evicted: the schedule is not applied, or not to all layers"
    ),
    *_modes(),
    *_off_by_one(),
    *_sinks_left_out(),
    *_other_faults(),
)


def known_for(rope_base: float | None) -> tuple[Bookkeeping, ...]:
    """The bookkeepings that differ for a model with this RoPE base."""
    return tuple(each for each in BOOKKEEPINGS if each.shift_base in (None, *_other(rope_base)))


def _other(rope_base: float | None) -> tuple[float, ...]:
    return () if rope_base in (None, USUAL_BASE) else (USUAL_BASE,)


BY_NAME = {each.name: each for each in BOOKKEEPINGS}


def ranges_of(tokens: Sequence[int]) -> list[list[int]]:
    """Sorted token indices as half-open ranges."""
    ranges: list[list[int]] = []
    for token in tokens:
        if ranges and ranges[-1][1] == token:
            ranges[-1][1] += 1
        else:
            ranges.append([int(token), int(token) + 1])
    return ranges
