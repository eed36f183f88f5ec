"""Draws the evictions of a training example: keep sets of three families, at turn boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from kvfidelity.finetuning.evicted_states import Eviction, Skip

#: Kept slots in no order, sinks and the latest slots, or contiguous spans at random places.
FAMILIES = ("random", "streaming", "spans")
MOST_EVICTIONS = 3
SINKS = 4
#: Shortest and longest span of the family `spans`, in slots.
SPAN = (8, 128)


def draw_evictions(
    rng: Random, boundaries: Sequence[int], retention: tuple[float, float]
) -> list[Eviction]:
    """One to three evictions of one family.

    Args:
        boundaries: token indices at which a turn starts, ascending, without 0; at least one.
        retention: least and largest share of the cached slots that an eviction keeps; drawn
            uniformly for each, and at least one slot is evicted and one kept.
    """
    family = rng.choice(FAMILIES)
    number = rng.randint(1, min(MOST_EVICTIONS, len(boundaries)))
    found, slots, before = [], 0, 0
    for at in sorted(rng.sample(list(boundaries), number)):
        slots += at - before
        size = min(max(1, round(rng.uniform(*retention) * slots)), slots - 1)
        if size < 1:
            continue  # a single cached slot, of which nothing can go
        found.append(Eviction(at, keep_set(rng, family, slots, size)))
        slots, before = size, at
    return found


def draw_skips(rng: Random, evictions: Sequence[Eviction], tokens: int, window: int) -> list[Skip]:
    """For each eviction a jump as large as the number of slots it evicts; nothing is evicted.

    A jump goes back, as `stale` does, or as far ahead, with equal probability; ahead only while
    all positions stay within the trained `window`.
    """
    found: list[Skip] = []
    slots = before = shift = 0
    for eviction in evictions:
        slots += eviction.at - before
        size = slots - len(eviction.kept)
        ahead = rng.random() < 0.5 and tokens + shift + size <= window
        by = size if ahead else -min(size, eviction.at + shift)
        found.append(Skip(eviction.at, by))
        slots, before, shift = len(eviction.kept), eviction.at, shift + by
    return found


def keep_set(rng: Random, family: str, slots: int, size: int) -> Tensor:
    """int64 [size], sorted: `size` of `slots` slots, chosen as the family does.

    Raises:
        ValueError: an unknown family.
    """
    match family:
        case "random":
            chosen = sorted(rng.sample(range(slots), size))
        case "streaming":
            sinks = min(SINKS, size)
            chosen = [*range(sinks), *range(slots - size + sinks, slots)]
        case "spans":
            chosen = _spans(rng, slots, size)
        case _:
            raise ValueError(f"unknown family {family!r}; one of {', '.join(FAMILIES)}")
    return torch.tensor(chosen, dtype=torch.int64)


def _spans(rng: Random, slots: int, size: int) -> list[int]:
    """Spans at random places until `size` slots are covered; the last one is cut to fit."""
    kept: set[int] = set()
    while len(kept) < size:
        length, start = rng.randint(*SPAN), rng.randrange(slots)
        for slot in range(start, min(start + length, slots)):
            if len(kept) == size:
                break
            kept.add(slot)
    return sorted(kept)
