"""The keep sets of a probe set: such that no two ways to keep positions agree on all of them.

A kept prefix cannot tell `stale` from `rerotated`, a kept suffix cannot tell `original` from
`rerotated`, and only heads that keep different tokens show whether positions are shared over heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvfidelity.engine_check.bookkeeping import ranges_of
from kvfidelity.engine_check.probes import Eviction

SINKS = 4
#: The latest tokens, which every scattered keep set keeps.
RECENT = 4


@dataclass(frozen=True)
class Schedule:
    """Evictions of one probe.

    kind: prefix, suffix, scattered, streaming, per_head or repeated. scored: how many tokens after
    the first eviction are scored. faults: whether the answers of known faults are computed too, not
    those of the modes alone.
    """

    kind: str
    evictions: tuple[Eviction, ...]
    scored: int
    faults: bool = False


def prefix(after: int, kept: int, scored: int) -> Schedule:
    """Keeps the first tokens."""
    return Schedule("prefix", (_eviction(after, np.arange(kept)),), scored)


def suffix(after: int, kept: int, scored: int) -> Schedule:
    """Keeps the last tokens."""
    return Schedule("suffix", (_eviction(after, np.arange(after - kept, after)),), scored)


def streaming(after: int, kept: int, scored: int) -> Schedule:
    """Keeps the first four tokens and the last ones (StreamingLLM, arXiv 2309.17453)."""
    return Schedule("streaming", (_eviction(after, _sinks_and_last(after, kept)),), scored)


def scattered(after: int, kept: int, scored: int, seed: int = 0) -> Schedule:
    """Keeps the first four, the last four and random others."""
    return Schedule("scattered", (_eviction(after, _random(after, kept, seed)),), scored)


def per_head(after: int, kept: int, scored: int, heads: int) -> Schedule:
    """As `scattered`, other tokens in each kv head: the later the head, the later its tokens, so
    that the positions of two heads differ widely."""
    sets = [_random(after, kept, seed, late=seed / (heads - 1)) for seed in range(heads)]
    return Schedule("per_head", (_eviction(after, *sets),), scored)


def repeated_scattered(after: int, kept: int, scored: int, every: int) -> Schedule:
    """Evicts random tokens, down to `kept`, after each `every` tokens."""
    generator, survivors = np.random.default_rng(0), np.arange(after)
    evictions = []
    for now in range(after, after + scored, every):
        survivors = np.concatenate([survivors, np.arange(survivors[-1] + 1, now)])
        inner = survivors[SINKS:-RECENT]
        drop = generator.permutation(inner)[: len(survivors) - kept]
        survivors = np.setdiff1d(survivors, drop)
        evictions.append(_eviction(now, survivors))
    return Schedule("repeated", tuple(evictions), scored)


def repeated_streaming(after: int, kept: int, scored: int, every: int) -> Schedule:
    """Evicts as `streaming`, after each `every` tokens: each survivor moves many times."""
    times = range(after, after + scored, every)
    evictions = tuple(_eviction(now, _sinks_and_last(now, kept)) for now in times)
    return Schedule("repeated", evictions, scored)


@dataclass(frozen=True)
class Sizes:
    """Lengths of the three conversations, in tokens.

    short, medium, long: tokens before the first eviction; a long of 0 leaves that one out. scored:
    tokens scored after it. every: tokens between the evictions of the medium conversation.
    """

    short: int = 255
    medium: int = 1023
    long: int = 8383
    short_scored: int = 64
    medium_scored: int = 96
    long_scored: int = 64
    every: int = 4
    repeats: int = 64

    @classmethod
    def for_window(cls, window: int) -> Sizes:
        """The usual ones; the long conversation goes beyond a trained window of `window` tokens."""
        return cls(long=window + 191)


def schedules(sizes: Sizes, heads: int) -> Iterator[tuple[str, Schedule]]:
    """Name of the conversation and schedule of each probe.

    Args:
        heads: kv heads of the model.
    """
    at, kept, scored = sizes.short, sizes.short // 2 + 1, sizes.short_scored
    yield "short", prefix(at, kept, scored)
    yield "short", suffix(at, kept, scored)
    yield "short", with_faults(scattered(at, kept, scored))
    yield "short", repeated_scattered(at, kept, scored, max(1, scored // 8))
    at, kept, scored = sizes.medium, sizes.medium // 4 + 1, sizes.medium_scored
    yield "medium", streaming(at, kept, scored)
    yield "medium", with_faults(scattered(at, kept, scored))
    if heads > 1:
        yield "medium", with_faults(per_head(at, kept, scored, heads))
    repeated = sizes.every * sizes.repeats
    yield "medium", with_faults(repeated_streaming(at, kept, repeated, sizes.every))
    if sizes.long:
        at, kept, scored = sizes.long, sizes.long // 4 + 1, sizes.long_scored
        yield "long", streaming(at, kept, scored)
        yield "long", scattered(at, kept, scored)


def with_faults(schedule: Schedule) -> Schedule:
    """The schedule, with the answers of known faults."""
    return replace(schedule, faults=True)


def _sinks_and_last(after: int, kept: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(SINKS), np.arange(after - kept + SINKS, after)])


def _random(after: int, kept: int, seed: int, late: float = 0.5) -> NDArray[np.int64]:
    """late: 0 takes three quarters of the tokens from the first half, 1 from the second."""
    inner = np.arange(SINKS, after - RECENT)
    half = np.array_split(inner, 2)
    chosen = kept - SINKS - RECENT
    second = round(chosen * (0.25 + 0.5 * late))
    generator = np.random.default_rng(seed)
    parts = [
        generator.permutation(part)[:count]
        for part, count in zip(half, (chosen - second, second), strict=True)
    ]
    return np.sort(np.r_[0:SINKS, *parts, after - RECENT : after])


def _eviction(after: int, *keep: NDArray[np.int64]) -> Eviction:
    ranges = (ranges_of(each.tolist()) for each in keep)
    return Eviction(after, tuple(tuple((a, b) for a, b in each) for each in ranges))
