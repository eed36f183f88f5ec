"""The rings hold the latest queries in order, whatever the parts that they come in."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.cache.recent_queries import RecentQueries


def queries(first: int, count: int) -> torch.Tensor:
    """[2 heads, count, 3]: each value names its token."""
    return torch.arange(first, first + count).float()[None, :, None].expand(2, count, 3)


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 9))
def test_the_latest_queries_in_order(window: int, parts: list[int], narrower: int) -> None:
    recent, seen = RecentQueries(1, window), 0
    for count in parts:
        recent.add(0, queries(seen, count), seen)
        seen += count
        found = recent.of_layer(0)
        assert found is not None and len(recent) == min(window, seen)
        assert torch.equal(found, queries(seen - len(recent), len(recent)))
    if narrower <= window:
        copy = recent.fork(narrower)
        found = copy.of_layer(0)
        assert found is not None and found.shape[1] == min(narrower, seen)
        assert torch.equal(found, queries(seen - found.shape[1], found.shape[1]))
        again = RecentQueries.from_latest(found[None], narrower, seen)
        assert again.rings is not None and copy.rings is not None
        assert torch.equal(again.rings, copy.rings)


def test_a_copy_is_independent_and_a_gap_forgets() -> None:
    recent = RecentQueries(1, 4)
    recent.add(0, queries(0, 3), 0)
    copy = recent.fork()
    copy.add(0, queries(3, 3), 3)
    mine, theirs = recent.of_layer(0), copy.of_layer(0)
    assert mine is not None and torch.equal(mine, queries(0, 3))
    assert theirs is not None and torch.equal(theirs, queries(2, 4))
    copy.add(0, queries(20, 2), 20)
    later = copy.of_layer(0)
    assert later is not None and torch.equal(later, queries(20, 2))
