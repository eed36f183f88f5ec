"""Which tokens the queries of a dialogue see after evictions, and at which positions.

A dialogue with evictions falls into stretches: between two evictions all queries see the same
earlier tokens at the same positions, and the tokens of their own stretch before them. Positions are
those of `cache.slots.SlotTable`, so they are the managed cache's by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable


@dataclass(frozen=True)
class Eviction:
    """An eviction before token `at` is fed.

    kept: int64 [k], the slots that survive, sorted, as `ManagedCache.keep` takes them.
    """

    at: int
    kept: Tensor


@dataclass(frozen=True)
class Skip:
    """A jump of positions before token `at` is fed, by `by` positions; nothing is evicted."""

    at: int
    by: int


@dataclass(frozen=True)
class Stretch:
    """Tokens from one eviction to the next, in the order in which they are fed.

    start, stop: their half-open span of token indices. earlier: int64 [m], token indices of the
    earlier tokens that they see, sorted. earlier_positions: int64 [m], the positions that these are
    rotated by for queries of this stretch. positions: int64 [stop - start], of its own tokens.
    """

    start: int
    stop: int
    earlier: Tensor
    earlier_positions: Tensor
    positions: Tensor


def evicted(tokens: int, evictions: Sequence[Eviction], mode: PositionMode | str) -> list[Stretch]:
    """The stretches of a dialogue of `tokens` tokens with evictions, under a position mode.

    Args:
        evictions: by ascending `at`, each from 1 to tokens - 1; empty: one stretch.

    Raises:
        ValueError: unsorted, repeated or out-of-range slots, or evictions out of order.
    """
    table = SlotTable(PositionMode(mode))
    found = []
    for number, (start, stop) in enumerate(_spans(tokens, [item.at for item in evictions])):
        if number:
            table.keep(evictions[number - 1].kept)
        earlier, at = table.token_index[0, 0].clone(), table.position[0, 0].clone()
        found.append(Stretch(start, stop, earlier, at, table.append(stop - start)))
    return found


def skipped(tokens: int, skips: Sequence[Skip]) -> list[Stretch]:
    """The stretches of a dialogue of `tokens` tokens of which all stay, with jumps of positions.

    Args:
        skips: by ascending `at`.

    Raises:
        ValueError: jumps out of order, or one below position 0.
    """
    position = torch.arange(tokens)
    spans = _spans(tokens, [skip.at for skip in skips])
    for skip in skips:
        position[skip.at :] += skip.by
    if bool((position < 0).any()):
        raise ValueError("a skip leads below position 0")
    return [
        Stretch(start, stop, torch.arange(start), position[:start], position[start:stop])
        for start, stop in spans
    ]


def _spans(tokens: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open spans between 0, the cuts and `tokens`."""
    edges = [0, *cuts, tokens]
    spans = list(pairwise(edges))
    if any(start >= stop for start, stop in spans):
        raise ValueError(f"evictions at {list(cuts)} are not ascending within {tokens} tokens")
    return spans
