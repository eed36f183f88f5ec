"""Policies around other policies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.errors import UserError
from tests.cache.policy_examples import (
    EVICTING,
    cache_of,
    kept,
    rows_of,
)
from tests.cache.views import ragged_view, random_view


def test_criticalkv_refuses_a_ranking_below_zero() -> None:
    with pytest.raises(UserError, match="knorm ranks below 0; wrap a policy that ranks by"):
        kept("criticalkv", 50, 9, policy="knorm")


def test_wrappers_keep_what_their_name_says() -> None:
    inner = {"kind": "block", "which": "middle"}
    ends = {"policy": inner, "sinks": 2, "recent": 3}
    assert kept("protect", 20, 8, **ends) == [0, 1, 8, 9, 10, 17, 18, 19]
    last = {"kind": "block", "which": "last"}
    assert kept("per_chunk", 20, 8, policy=last, chunk=5) == [3, 4, 8, 9, 13, 14, 18, 19]
    assert kept("chunkkv", 20, 12, policy=last, chunk=5) == [5, 6, *range(10, 20)]


def test_a_wrapper_needs_what_the_wrapped_policy_needs() -> None:
    scored = build_policy("chunkkv", {"policy": "h2o"})
    assert scored.needs_scores and not scored.query_window and not scored.needs_output_projection
    deep = build_policy("protect", {"policy": {"kind": "criticalkv", "policy": "tova"}})
    assert not deep.needs_scores and deep.query_window == 1 and deep.needs_output_projection
    random = {"kind": "random", "keep_ratio": 0.5}
    assert build_policy("protect", {"policy": random}).default_size(90) == 45


@pytest.mark.parametrize("outer", [kind for kind in EVICTING if known_policies()[kind].ragged])
@pytest.mark.parametrize("inner", ["protect", "chunkkv", "per_chunk", "criticalkv"])
def test_wrappers_compose_with_ragged_ones_from_the_inside(outer: str, inner: str) -> None:
    """Of a ragged policy around a wrapper around a ranking the budgets are the outer one's."""
    fields = {item.name for item in dataclasses.fields(known_policies()[outer])}
    entry = {"kind": inner, "policy": {"kind": "snapkv", "window": 8}}
    if "policy" not in fields:
        with pytest.raises(UserError, match=f"wrap {inner} in {outer}"):
            build_policy(inner, {"policy": outer})
        return
    policy = build_policy(outer, {"policy": entry})
    even, uneven = random_view(60, 20), ragged_view(torch.tensor([[50, 30], [20, 60]]), 20)
    for view in (even, uneven):
        found = policy.keep(view)
        assert isinstance(found, RaggedKeepSet) and found.per_head == 20
        if inner == "protect":
            for row, count in zip(rows_of(found), view.counts.flatten().tolist(), strict=True):
                few = min(4, row.numel())
                assert row[:few].tolist() == list(range(few)), "sinks survive in every head"
                recent = min(16, row.numel() - few)  # as many as a uniform budget has room for
                assert row[row.numel() - recent :].tolist() == [*range(count - recent, count)]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((2, 1, 0), [38, 20, 2]), ((1, 2, 1), [15, 30, 15]), ((1, 1, 1), [20, 20, 20])],
)
def test_a_schedule_shares_the_budget_out_to_layers(
    weights: tuple[int, int, int], expected: list[int], llama: Any
) -> None:
    """Three layers; what weight 0 leaves, one slot for each of its heads, the others give."""
    first, middle, last = map(float, weights)
    schedule = {"policy": "knorm", "first": first, "middle": middle, "last": last}
    policy = build_policy("layer_schedule", schedule)
    cache = cache_of(llama, policy)
    evictor = Evictor(policy, EvictionSchedule("turn", 60, 20))
    evictor.before_turn(cache)
    counts = evictor.log[0].kept.counts  # type: ignore[union-attr]
    assert counts[:, 0].tolist() == counts[:, 1].tolist()
    if last:
        assert counts[:, 0].tolist() == expected
    else:
        assert counts[2, 0] == 1 and counts[0, 0] > counts[1, 0] > 1
    assert int(counts.sum()) == 20 * 6
