"""What every policy guarantees."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.errors import ModelOverflowError, UserError
from tests.cache.calibrated import calibrated
from tests.cache.policy_examples import (
    EVICTING,
    REQUIRED,
    cache_of,
    evict,
    example,
    rows_of,
)
from tests.cache.views import ragged_view, random_view
from tests.repeated import TIMES

#: It waits before the first scored forward; the others that use scores draw at random then, or
#: never act under the trigger where that happens.
WAITING_FOR_SCORES = {"attention_top"}
#: Of each policy.
EXAMPLES = 40 * TIMES


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """A cache, a budget and protected spans that fit into it."""
    slots = draw(st.integers(1, 90))
    start = draw(st.integers(0, slots))
    stop = draw(st.integers(start, slots))
    budget = draw(st.integers(max(stop - start, 1), slots))
    return {
        "slots": slots,
        "budget": budget,
        "protected": ((start, stop),) if stop > start else (),
        "seed": draw(st.integers(0, 99)),
        "scored": draw(st.booleans()),
    }


@pytest.mark.parametrize("kind", EVICTING)
@settings(max_examples=EXAMPLES)
@given(situation=situations())
def test_every_policy_keeps_its_contract(kind: str, situation: dict[str, Any]) -> None:
    policy = example(kind)
    view = random_view(**situation)
    slots, budget = situation["slots"], situation["budget"]
    can_rank = situation["scored"] or kind not in WAITING_FOR_SCORES
    assert policy.should_evict(view) == can_rank
    if not can_rank or (kind in ("h2o", "hybrid") and not situation["scored"]):
        return
    kept = policy.keep(view)
    assert isinstance(kept, RaggedKeepSet) == policy.ragged
    rows = rows_of(kept)
    assert sum(row.numel() for row in rows) == budget * len(rows), "the total is the budget's"
    for row in rows:
        assert row.dtype == torch.int64
        assert row.numel() == budget or (policy.ragged and row.numel() >= 1)
        assert (row.diff() > 0).all(), "sorted, without repeats"
        assert row.min() >= 0 and row.max() < slots
        for start, stop in situation["protected"]:
            inside = ((row >= start) & (row < stop)).sum()
            assert inside == stop - start, "protected slots survive"
    again = rows_of(policy.keep(random_view(**situation)))
    assert all(map(torch.equal, again, rows)), "deterministic given the seed"


@st.composite
def ragged_situations(draw: st.DrawFn) -> dict[str, Any]:
    """A cache whose kv heads differ, a budget, and protected newest slots that every head holds."""
    first = [draw(st.integers(1, 60)) for _ in range(3)]
    total = sum(first)
    counts = torch.tensor([[first[0], first[1]], [first[2], 4 * max(first) - total]])
    newest = draw(st.integers(0, int(counts.min())))
    mean = int(counts.sum()) // 4
    return {
        "counts": counts,
        "budget": draw(st.integers(max(newest, 1), mean)),
        "newest": newest,
        "seed": draw(st.integers(0, 99)),
        "scored": draw(st.booleans()),
    }


@pytest.mark.parametrize("kind", EVICTING)
@settings(max_examples=EXAMPLES)
@given(situation=ragged_situations())
def test_every_policy_keeps_its_contract_where_kv_heads_differ(
    kind: str, situation: dict[str, Any]
) -> None:
    policy, view = example(kind), ragged_view(**situation)
    if not policy.ragged:
        with pytest.raises(UserError, match=rf"^policy {kind} keeps as many slots in every kv"):
            policy.keep(view)
        return
    found = policy.keep(view)
    assert isinstance(found, RaggedKeepSet)
    assert found.per_head == situation["budget"], "the total is the budget's"
    found.check(situation["counts"])  # sorted, without repeats, slots that the heads hold
    for row, count in zip(rows_of(found), situation["counts"].flatten().tolist(), strict=True):
        assert row.numel() >= 1
        newest = torch.arange(count - situation["newest"], count)
        assert bool(torch.isin(newest, row).all()), "protected slots survive"
    again = policy.keep(ragged_view(**situation))
    assert isinstance(again, RaggedKeepSet) and torch.equal(again.slots, found.slots)


GRANULAR = [
    (kind, {"granularity": chosen})
    for kind in ("attention_top", "h2o", "hybrid")
    for chosen in ("shared", "head")
]
WRAPPED = [
    (kind, {"policy": inside})
    for kind in ("chunkkv", "criticalkv", "per_chunk", "protect", "disruption_penalty")
    for inside in ("random", "tova", "snapkv")
]


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [*((kind, REQUIRED.get(kind, {})) for kind in EVICTING), *GRANULAR, *WRAPPED],
    ids=str,
)
def test_every_policy_declares_what_one_keep_set_is_for(
    kind: str, parameters: dict[str, Any]
) -> None:
    if parameters.get("policy") == "random":
        parameters = {"policy": {"kind": "random", "keep_ratio": 0.9}}
    policy = build_policy(kind, parameters)
    found = policy.keep(random_view(60, 20))
    dimensions = 3 if isinstance(found, RaggedKeepSet) else found.dim()
    assert {"shared": 1, "layer": 2, "head": 3}[policy.keep_sets] == dimensions


@pytest.mark.parametrize("kind", EVICTING)
def test_no_policy_touches_its_input(kind: str) -> None:
    view, twin = random_view(60, 20), random_view(60, 20)
    example(kind).keep(view)
    assert torch.equal(view.token_index, twin.token_index)
    assert torch.equal(view.attention("latest"), twin.attention("latest"))
    for one, other in zip(view.layers, twin.layers, strict=True):
        for name in ("keys", "rotated_keys", "values", "queries"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("kind", known_policies())
def test_every_policy_and_parameter_is_documented(kind: str) -> None:
    policy = known_policies()[kind]
    assert policy.__doc__ and not policy.__doc__.startswith(policy.__name__ + "(")
    assert all(item.metadata["doc"] for item in dataclasses.fields(policy))


@pytest.mark.parametrize("kind", EVICTING)
def test_every_policy_evicts_from_the_cache_of_a_model(kind: str, llama: Any) -> None:
    policy = example(kind)
    cache = cache_of(llama, policy)
    [eviction] = evict(cache, policy)
    assert (eviction.slots_before, eviction.slots_after, cache.size) == (60, 24, 24)


@pytest.mark.parametrize("kind", EVICTING)
def test_few_slots_and_small_targets_are_evicted_to_size(kind: str, llama: Any) -> None:
    """24 slots to 16 and again, with a window of 32 queries, sinks and recent slots that do not
    fit, and keep sets per layer or kv head of a grouped-query model."""
    wide: dict[str, dict[str, Any]] = {
        "attention_top": {"sinks": 20, "recent": 20, "granularity": "head", "over_heads": "max"},
        "sliding_window_gist": {"recent_tokens": 40},
        "streaming_llm": {"sinks": 40},
    }
    policy = build_policy(kind, REQUIRED.get(kind, {}) | wide.get(kind, {}))
    evictor = Evictor(policy, EvictionSchedule("step", 24, 16))
    cache = new_cache(calibrated(llama, policy), evictor=evictor)
    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for part in torch.split(ids, [20, *[1] * 40], dim=1):
            llama(part, **{cache_argument(llama): cache})
    assert [eviction.slots_after for eviction in evictor.log] == [16] * len(evictor.log)
    assert len(evictor.log) == 5


BY_INDEX = {
    "random_spans",
    "random",
    "block",
    "evict_oldest",
    "sliding_window",
    "sliding_window_gist",
    "streaming_llm",
    "duo_attention",
}


@pytest.mark.parametrize("kind", EVICTING)
def test_a_ranking_of_scores_that_overflowed_is_refused(kind: str) -> None:
    """Policies that look at what is not finite say so; the others rank by the slots' order."""
    view = random_view(50, 9)
    assert view.scores is not None
    view.attention("latest")[0, 0, 30] = torch.nan
    view.attention("accumulated")[0, 0, 30] = torch.nan
    for layer in view.layers:
        for tensor in (layer.keys, layer.values, layer.rotated_keys):
            tensor[0, 30] = torch.nan
    few = {"gist_tokens": 4, "recent_tokens": 4} if kind.endswith("attentive") else {}
    few |= {"lag": 8} if kind == "lagkv" else {}
    assert view.repetition is not None
    view.repetition.attention(0, 1)[0, 0, 30] = torch.nan
    policy = build_policy(kind, REQUIRED.get(kind, {}) | few)
    if policy.kind in BY_INDEX:
        assert all(row.numel() for row in rows_of(policy.keep(view)))
    else:
        with pytest.raises(ModelOverflowError, match=r"float32 \(first in .* layer 0\)"):
            policy.keep(view)
