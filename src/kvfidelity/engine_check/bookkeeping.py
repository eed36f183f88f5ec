"""Ways to keep positions after an eviction: the three modes, no eviction, and known faults.

Each is integers only: which tokens stay, which position each surviving key is rotated by, and which
position comes next. `EngineTable` applies one of them to a core cache, so that the core computes
what an engine with that bookkeeping answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable, as_grid

#: Half-open ranges of token indices, in order: [[0, 4], [100, 128]].
Ranges = Sequence[Sequence[int]]
#: (positions before, slots before, slots after, evicted slots) -> positions after; tensors [L', G',
#: k], slots after [k]. The slot before is where mode `rerotated` would have had the key.
Moved = Callable[[Tensor, Tensor, Tensor, int], Tensor]
#: (cached slots, tokens seen, evictions so far) -> the position of the next fed token.
NextPosition = Callable[[int, int, int], int]


def _kept(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return old


def _renumbered(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return new.expand_as(old)


def _rotated_twice(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return old + new


def _rotated_backwards(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return old - (new - slots)


def _only_sinks_moved(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return torch.where(slots == new, old - evicted, old)


def _moved_as_first_head(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return old + (new - slots[:, :1])


def _those_of_first_head(old: Tensor, slots: Tensor, new: Tensor, evicted: int) -> Tensor:
    return old[:, :1].expand_as(old)


def _cached(shift: int = 0) -> NextPosition:
    return lambda slots, seen, evictions: slots + shift


def _seen(shift: int = 0) -> NextPosition:
    return lambda slots, seen, evictions: seen + shift * evictions


@dataclass(frozen=True)
class Bookkeeping:
    """One way to keep positions.

    name: as it stands in a probe set. mode: the position mode that it is, or is a fault of; None
    for `full`. look_for: what an engine's developer should look for. leaves_out: how many of the
    first tokens of each keep set are evicted all the same.
    """

    name: str
    mode: PositionMode | None
    look_for: str
    moved: Moved = _kept
    next_position: NextPosition = _seen()
    leaves_out: int = 0

    @property
    def evicts(self) -> bool:
        """Whether it evicts at all."""
        return self.mode is not None

    @property
    def is_fault(self) -> bool:
        """Whether it is neither a position mode nor `full`."""
        return self.name not in MODES


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
BY_NAME = {each.name: each for each in BOOKKEEPINGS}


class EngineTable(SlotTable):
    """Slots of one sequence under a bookkeeping; integers only."""

    def __init__(self, bookkeeping: Bookkeeping, tokens: int = 0) -> None:
        super().__init__(PositionMode.ORIGINAL, capacity=max(tokens, 1))
        self.bookkeeping = bookkeeping
        if tokens:
            self.append(tokens)

    @property
    def next_position(self) -> int:
        if not self.evictions:
            return self.tokens_seen
        return self.bookkeeping.next_position(len(self), self.tokens_seen, self.evictions)

    def keep(self, kept: Tensor) -> None:
        before = len(self)
        super().keep(kept)
        old, new = self.position, torch.arange(len(self))
        slots = as_grid(kept).expand_as(old)
        moved = self.bookkeeping.moved(old, slots, new, before - len(self))
        self._position = moved.contiguous().clone()

    def slots_of(self, keep: Sequence[Ranges]) -> Tensor:
        """Slots of the tokens in `keep` that this bookkeeping keeps and that are cached.

        Args:
            keep: ranges of token indices, one list for all heads or one for each kv head.

        Returns:
            int64 [G', k].
        """
        rows = []
        for head, ranges in enumerate(keep):
            tokens = tokens_of(ranges)[self.bookkeeping.leaves_out :]
            cached = self.token_index[0, min(head, self.token_index.shape[1] - 1)]
            rows.append(torch.isin(cached, tokens).nonzero()[:, 0])
        return torch.stack(rows)


def tokens_of(ranges: Ranges) -> Tensor:
    """Token indices of half-open ranges, int64 [k]."""
    return torch.cat([torch.arange(start, stop) for start, stop in ranges])


def ranges_of(tokens: Sequence[int]) -> list[list[int]]:
    """Sorted token indices as half-open ranges."""
    ranges: list[list[int]] = []
    for token in tokens:
        if ranges and ranges[-1][1] == token:
            ranges[-1][1] += 1
        else:
            ranges.append([int(token), int(token) + 1])
    return ranges


def evict(cache: ManagedCache, keep: Sequence[Ranges]) -> None:
    """Evict from a cache whose slot table is an EngineTable, on a CPU.

    Args:
        keep: see `EngineTable.slots_of`.
    """
    table = cache.slot_table
    assert isinstance(table, EngineTable)
    if not table.bookkeeping.evicts:
        return
    slots = table.slots_of(keep)
    cache.keep(slots[0] if len(slots) == 1 else slots[None])
    cos, sin = cache.rotary.angles(table.position, cache.device)
    for index, layer in enumerate(cache.layers):
        of_layer = index if len(cos) > 1 else 0
        layer.rerotate(cos[of_layer], sin[of_layer])
