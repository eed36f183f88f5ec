"""What every policy guarantees, and what distinguishes each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import Policy, build_policy, known_policies
from kvfidelity.cache.policies.hybrid import Hybrid, span_means, span_numbers
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.slots import as_grid
from kvfidelity.cache.transcript import Transcript
from kvfidelity.errors import ModelOverflowError, UserError
from tests.cache.calibrated import TEXT, calibrated
from tests.cache.views import ragged_view, random_view

REQUIRED: dict[str, dict[str, Any]] = {
    "random": {"keep_ratio": 0.9},
    "sliding_window": {"keep_ratio": 0.9},
    "evict_oldest": {"discard_ratio": 0.1},
    "block": {"which": "middle"},
}
EVICTING = [kind for kind, policy in known_policies().items() if policy.evicts]
#: It waits before the first scored forward; the others that use scores draw at random then, or
#: never act under the trigger where that happens.
WAITING_FOR_SCORES = {"attention_top"}


def example(kind: str) -> Policy:
    return build_policy(kind, REQUIRED.get(kind, {}))


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


def rows_of(kept: torch.Tensor | RaggedKeepSet) -> list[torch.Tensor]:
    """Every keep set of its own, int64 [k]."""
    if isinstance(kept, RaggedKeepSet):
        return [row for layer in kept.rows() for row in layer]
    return list(kept.reshape(-1, kept.shape[-1]))


@pytest.mark.parametrize("kind", EVICTING)
@settings(deadline=None)  # a busy machine is not an error
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
@settings(deadline=None, max_examples=40)
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


def kept(kind: str, slots: int, budget: int, **parameters: Any) -> list[int]:
    return build_policy(kind, parameters).keep(random_view(slots, budget)).tolist()


def test_contiguous_policies_keep_the_slots_of_their_name() -> None:
    assert kept("sliding_window", 10, 3, keep_ratio=0.5) == [7, 8, 9]
    assert kept("evict_oldest", 10, 7, discard_ratio=0.3) == [3, 4, 5, 6, 7, 8, 9]
    assert kept("sliding_window_gist", 10, 4, gist_tokens=2000) == [0, 1, 2, 3]
    assert kept("sliding_window_gist", 10, 5, recent_tokens=2) == [0, 1, 2, 8, 9]
    assert kept("streaming_llm", 10, 5, sinks=2) == [0, 1, 7, 8, 9]
    assert kept("block", 10, 4, which="first") == [0, 1, 2, 3]
    assert kept("block", 10, 4, which="middle") == [3, 4, 5, 6]
    assert kept("block", 10, 4, which="last") == [6, 7, 8, 9]


def test_default_sizes_are_those_of_the_paper() -> None:
    assert build_policy("attention_top", {"keep_ratio": 0.99}).default_size(4800) == 4752
    assert build_policy("sliding_window_gist", {}).default_size(4800) == 2000
    assert build_policy("sliding_window_gist", {}).default_size(900) == 900
    assert build_policy("evict_oldest", {"discard_ratio": 0.25}).default_size(100) == 75
    assert build_policy("streaming_llm", {}).default_size(9000) == 2004
    assert build_policy("snapkv", {}).default_size(9000) is None


def test_attention_top_keeps_the_most_attended_by_mean_over_layers_and_heads() -> None:
    view = random_view(50, 9)
    mean = view.attention("latest").mean((0, 1))
    expected = mean.topk(9).indices.sort().values
    assert torch.equal(build_policy("attention_top", {}).keep(view), expected)
    worst = (-mean).topk(9).indices.sort().values
    assert torch.equal(build_policy("attention_bottom", {}).keep(view), worst)


@pytest.mark.parametrize(("granularity", "shape"), [("layer", (2, 9)), ("head", (2, 2, 9))])
def test_attention_top_by_layer_and_head(granularity: str, shape: tuple[int, ...]) -> None:
    policy = build_policy(
        "attention_top", {"granularity": granularity, "over_heads": "max", "sinks": 2}
    )
    found = policy.keep(random_view(50, 9))
    assert found.shape == shape
    assert (found[..., :2] == torch.tensor([0, 1])).all()


@pytest.mark.parametrize("over_layers", ["mean", "max", "sum"])
@pytest.mark.parametrize("over_heads", ["mean", "max", "sum"])
def test_heads_and_layers_are_combined_as_asked(over_heads: str, over_layers: str) -> None:
    view = random_view(50, 9)
    scores = view.attention("latest").numpy()
    expected = getattr(getattr(scores, over_heads)(1), over_layers)(0)
    policy = build_policy("attention_top", {"over_heads": over_heads, "over_layers": over_layers})
    assert torch.allclose(policy.priority(view), torch.from_numpy(expected))


def test_criticalkv_refuses_a_ranking_below_zero() -> None:
    with pytest.raises(UserError, match="knorm ranks below 0; wrap a policy that ranks by"):
        kept("criticalkv", 50, 9, policy="knorm")


def test_age_normalised_scores_do_not_favour_the_old() -> None:
    view = random_view(50, 9)
    rank = build_policy("attention_top", {"age_normalised": True}).priority(view)
    ages = (view.tokens_seen - view.token_index)[0, 0]
    assert torch.allclose(rank * ages, view.attention("latest").mean((0, 1)), rtol=1e-4)


def cache_of(model: Any, policy: Policy) -> ManagedCache:
    """60 tokens, fed in two forwards, with the scores and the latest queries that were computed."""
    # More queries than the policy's own: what it keeps must not depend on them.
    cache = new_cache(
        calibrated(model, policy),
        collect_scores=True,
        query_window=policy.query_window + 7,
        transcript=Transcript(),
    )
    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for part in torch.split(ids, [45, 15], dim=1):
            model(part, **{cache_argument(model): cache})
    return cache


def evict(cache: ManagedCache, policy: Policy) -> list[Eviction]:
    """Evict 60 slots down to 24, and return the log."""
    evictor = Evictor(policy, EvictionSchedule("turn", 60, 24))
    evictor.before_turn(cache)
    return evictor.log


@pytest.mark.parametrize("kind", EVICTING)
def test_every_policy_evicts_from_the_cache_of_a_model(kind: str, llama: Any) -> None:
    policy = example(kind)
    cache = cache_of(llama, policy)
    [eviction] = evict(cache, policy)
    assert (eviction.slots_before, eviction.slots_after, cache.size) == (60, 24, 24)


def window_weights(cache: ManagedCache, layer: int, window: int) -> torch.Tensor:
    """Attention of the last `window` queries, fp64 [H, window, n], written out."""
    assert cache.recent_queries is not None
    recent = cache.recent_queries.of_layer(layer)
    assert recent is not None
    n, ratio = cache.size, recent.shape[0] // cache.rotated_keys(layer).shape[0]
    cos, sin = cache.rotary.angles(torch.arange(n - window, n), recent.device)
    queries = rotate(recent[:, -window:], cos, sin).double()
    keys = cache.rotated_keys(layer).double().repeat_interleave(ratio, 0)
    logits = queries @ keys.transpose(1, 2) * cache.scaling
    later = torch.arange(n) > torch.arange(n - window, n)[:, None]
    return logits.masked_fill(later, -torch.inf).softmax(-1)


def by_group(per_head: torch.Tensor) -> torch.Tensor:
    """[6, n] of query heads as the mean [2, n] over each kv head's three."""
    return per_head.view(2, 3, -1).mean(1)


def snapkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    votes = window_weights(cache, layer, 8).mean(1)
    votes[:, -8:] = 0
    padded = torch.nn.functional.pad(votes, (2, 2))
    rank = by_group(padded.unfold(-1, 5, 1).mean(-1))
    rank[:, -8:] = torch.inf
    return rank


def tova_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    return window_weights(cache, layer, 1)[:, 0].mean(0)


def expected_attention_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    assert cache.recent_queries is not None
    recent = cache.recent_queries.of_layer(layer)
    assert recent is not None and recent.shape == (6, 16 + 7, 8)
    recent = recent[:, -16:]
    cos, sin = cache.rotary.angles(torch.arange(60, 60 + 32), recent.device)
    # Row i of the rotated identity is where basis vector i goes.
    turns = torch.stack([rotate(torch.eye(8), c, s).T for c, s in zip(cos, sin, strict=True)])
    turn = turns.double().mean(0)
    keys = cache.rotated_keys(layer)[:, 4:].double().repeat_interleave(3, 0)
    weights = []
    for head in range(6):
        queries = recent[head].double()
        mean = turn @ queries.mean(0)
        covariance = turn @ torch.cov(queries.T, correction=0) @ turn.T
        spread = torch.tensor([float(key @ covariance @ key) for key in keys[head]])
        logits = keys[head] @ mean * cache.scaling + spread * cache.scaling**2 / 2
        weights.append(logits.softmax(0))
    values = cache.layers[layer].live_values.double().norm(dim=-1)
    rank = by_group(torch.stack(weights)) * values[:, 4:]
    return torch.cat([torch.full((2, 4), torch.inf), rank], dim=1)


@pytest.mark.parametrize(
    ("kind", "parameters", "rank_of_layer"),
    [
        ("snapkv", {"window": 8}, snapkv_rank),
        ("tova", {}, tova_rank),
        ("expected_attention", {"window": 16, "horizon": 32}, expected_attention_rank),
    ],
)
def test_policies_with_a_query_window_evict_by_their_own_ranking(
    kind: str,
    parameters: dict[str, Any],
    rank_of_layer: Callable[[ManagedCache, int], torch.Tensor],
    llama: Any,
) -> None:
    """Each layer keeps the 24 slots that the paper's formula, written out here, ranks highest."""
    policy = build_policy(kind, parameters)
    cache = cache_of(llama, policy)
    rank = torch.stack([rank_of_layer(cache, layer) for layer in range(3)])
    expected = rank.topk(24).indices.sort(-1).values
    [eviction] = evict(cache, policy)
    assert torch.equal(eviction.kept, as_grid(expected))
    newest = torch.arange(36, 60).expand_as(eviction.kept)
    assert not torch.equal(eviction.kept, newest), "the ranking decided, not the age"


def unit_filters(queries: torch.Tensor) -> torch.Tensor:
    """fp64 [H, d]: the main eigenvector of each head's queries, on their mean's side."""
    main = torch.linalg.eigh(queries.transpose(1, 2) @ queries).eigenvectors[..., -1]
    return main * (main * queries.mean(1)).sum(-1, keepdim=True).sign()


def finch_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    before = torch.arange(52, 60)
    rank = by_group((window_weights(cache, layer, 8) * before[:, None]).mean(1))
    rank[:, -8:] = torch.inf
    return rank


def qfilter_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """Filters of the queries of the text on which `cache_of` calibrates."""
    other = ManagedCache(cache.rotary, len(cache.layers), query_window=len(TEXT))
    decoder: Any = cache.rotary.decoder
    with torch.inference_mode():
        decoder(torch.tensor([list(TEXT)]), **{cache_argument(decoder): other})
    assert other.recent_queries is not None
    queries = other.recent_queries.of_layer(layer)
    assert queries is not None
    cos, sin = cache.rotary.angles(torch.arange(len(TEXT)), queries.device)
    filters = unit_filters(rotate(queries, cos, sin).double()).view(2, 3, 8).mean(1)
    return (cache.rotated_keys(layer).double() * filters[:, None]).sum(-1)


def lagkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """Partitions of 8 after 4 sinks: 4..12, ..., 52..60."""
    rank = torch.full((2, 60), torch.inf, dtype=torch.float64)
    for head in range(2):
        for start in range(4, 52, 8):
            total = torch.zeros(8, dtype=torch.float64)
            for tensor in (cache.rotated_keys(layer), cache.layers[layer].live_values):
                own, following = tensor[head].double()[start : start + 16].split(8)
                low, high = following.min(0).values, following.max(0).values
                total += ((own - low) / (high - low)).std(-1).softmax(-1)
            for slot in range(8):
                rank[head, start + slot] = (total < total[slot]).sum() / 8
    return rank - 1e-3 * torch.arange(60) / 60  # the earlier of two equals


def cur_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    rank = torch.empty(2, 60, dtype=torch.float64)
    keys, values = cache.layers[layer].live_keys, cache.layers[layer].live_values
    for slot in range(60):
        block = slice(slot - slot % 16, min(slot - slot % 16 + 16, 60))
        rank[:, slot] = 1.0
        for tensor in (keys, values):
            squares = tensor.double().pow(2).sum(-1)
            rank[:, slot] *= squares[:, slot] / squares[:, block].sum(-1)
    rank[:, :4] = torch.inf
    return rank


def leverage_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """One sketch is drawn for each layer in turn, from the generator of seed 0 and eviction 0."""
    drawn = np.random.default_rng((0, 0)).standard_normal((3, 2, 8, 48))[layer]
    rows = cache.layers[layer].live_keys.double()
    sketched = (rows - rows.mean(1, keepdim=True)) @ torch.from_numpy(drawn) / 48**0.5
    inverse = torch.linalg.inv(sketched.mT @ sketched + 0.01 * torch.eye(48))
    return (sketched @ inverse @ sketched.mT).diagonal(dim1=1, dim2=2)


def criticalkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    scores = snapkv_rank(cache, layer)
    weights = cache.rotary.output_projection(layer, 8).double()
    values = cache.layers[layer].live_values.double().repeat_interleave(3, 0)
    norms = torch.stack([(values[h] @ weights[h]).abs().sum(-1) for h in range(6)])
    rank = (scores.clamp(max=1) + 1e-4) * by_group(norms)
    for head in range(2):
        rank[head, scores[head].topk(12).indices] = torch.inf
    return rank


def chunkkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """Chunks of 7 by the mean of minus the keys' norm, the last one of 4."""
    norms = -cache.layers[layer].live_keys.double().norm(dim=-1).sum(0)
    rank = torch.cat([chunk.mean().expand(chunk.numel()) for chunk in norms.split(7)])
    return (rank - 1e-6 * torch.arange(60)).expand(2, 60)  # the earlier of two equals


@pytest.mark.parametrize(
    ("kind", "parameters", "rank_of_layer"),
    [
        ("finch", {"window": 8}, finch_rank),
        ("qfilter", {}, qfilter_rank),
        ("lagkv", {"lag": 8}, lagkv_rank),
        ("cur", {}, cur_rank),
        ("leverage_score", {}, leverage_rank),
        ("criticalkv", {"policy": {"kind": "snapkv", "window": 8}}, criticalkv_rank),
        ("chunkkv", {"policy": "knorm", "chunk": 7}, chunkkv_rank),
    ],
)
def test_policies_evict_by_the_formula_of_their_paper(
    kind: str,
    parameters: dict[str, Any],
    rank_of_layer: Callable[[ManagedCache, int], torch.Tensor],
    llama: Any,
) -> None:
    policy = build_policy(kind, parameters)
    cache = cache_of(llama, policy)
    rank = torch.stack([rank_of_layer(cache, layer) for layer in range(3)])
    expected = rank.topk(24).indices.sort(-1).values
    [eviction] = evict(cache, policy)
    assert torch.equal(eviction.kept.expand_as(expected), expected)
    newest = torch.arange(36, 60).expand_as(eviction.kept)
    assert not torch.equal(eviction.kept, newest), "the ranking decided, not the age"


def test_finch_asks_with_the_prompt_that_is_protected() -> None:
    """Of 32 queries that are kept, the prompt's last 6 ask; the prompt survives."""
    policy, short = (build_policy("finch", {"window": window}) for window in (32, 6))
    view = random_view(50, 12, protected=((44, 50),))
    assert torch.equal(policy.keep(view), short.keep(random_view(50, 12)))
    assert not torch.equal(policy.keep(view), policy.keep(random_view(50, 12)))


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


def test_a_policy_that_does_not_declare_the_output_projection_does_not_see_it() -> None:
    view = random_view(30, 9)
    assert view.layers[0].output_projection.shape == (6, 8, 5)
    with pytest.raises(LookupError, match="needs_output_projection = True"):
        _ = view.limited_to(scores=True, query_window=9).layers[0].output_projection


def test_the_output_projection_by_head_is_the_layers_own(model: Any) -> None:
    """A layer's output is the sum over heads of each head's output times its part."""
    cache = new_cache(model)
    attention = model.get_decoder().layers[1].self_attn
    heads, size = model.config.num_attention_heads, attention.head_dim
    outputs = torch.randn(5, heads, size, generator=torch.Generator().manual_seed(0))
    parts = torch.einsum("thd,hdo->to", outputs, cache.rotary.output_projection(1, size))
    assert torch.allclose(parts, attention.o_proj(outputs.flatten(1)), atol=1e-4)


def test_a_model_without_output_projections_is_refused_before_an_eviction_is_due(
    llama: Any,
) -> None:
    cache = new_cache(llama, query_window=32)
    cache.rotary._output_projections = (None, None, None)
    evictor = Evictor(build_policy("criticalkv", {}), EvictionSchedule("turn", 400, 24))
    with pytest.raises(UserError, match=r"^policy criticalkv ranks by .*`o_proj`"):
        evictor.before_turn(cache)


@pytest.mark.parametrize("budget", [1, 3, 4, 5, 8])
def test_a_budget_below_sinks_and_recent_keeps_sinks_then_the_latest(budget: int) -> None:
    """Not the oldest of the recent slots, and not slots by their attention."""
    fixed = {"sinks": 4, "recent": 16}
    expected = [*range(min(4, budget)), *range(50 - max(budget - 4, 0), 50)]
    assert kept("attention_top", 50, budget, **fixed) == expected
    by_head = build_policy("attention_top", {"granularity": "head", **fixed})
    found = by_head.keep(random_view(50, budget))
    assert torch.equal(found, torch.tensor(expected).expand(2, 2, -1))
    assert kept("streaming_llm", 50, budget, sinks=4) == expected


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
}
BY_INDEX |= {"streaming_llm", "duo_attention"}


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


OWN_RANKS = {
    "return torch.zeros(view.slots - 1)": r"ranking is \[59\]; it must be \[60\] or \[3, 60\]",
    "return torch.zeros(2, 3, view.slots)": r"ranking is \[2, 3, 60\]; .* or \[3, 2, 60\]",
    "return torch.zeros(view.slots, dtype=torch.complex64)": "ranks by torch.complex64",
    "return view.rng.random(view.slots)": "ranks by ndarray",
    "return torch.full((view.slots,), torch.nan)": "its ranking holds NaN",
    "return view.attention('latest').mean((0, 1))": "cannot rank: .*needs_scores = True",
    "return view.window_attention(0).mean((0, 1))": "cannot rank: .*`query_window`",
}
OWN_KEEPS = {
    "return torch.tensor([1, 1, *range(2, 24)])": "sorted and without repeats",
    "return torch.arange(24).flip(0)": "sorted and without repeats",
    "return torch.arange(50, 74)": r"outside 0\.\.59",
    "return torch.arange(20)": r"its keep set is torch.int64 \[20\], not int64 \[24\]",
    "return torch.arange(24).float()": r"its keep set is torch.float32 \[24\]",
    "return list(range(24))": "its keep set is list",
}


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        *[("priority", *item) for item in OWN_RANKS.items()],
        *[("keep", *item) for item in OWN_KEEPS.items()],
    ],
)
def test_a_ranking_that_cannot_be_followed_is_refused_by_the_policys_name(
    tmp_path: Path, llama: Any, method: str, body: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    text = OWN if method == "priority" else OWN + "    def keep(self, view):\n        pass\n"
    last = "return -(view.token_index[0, 0] % self.step)" if method == "priority" else "pass\n"
    file.write_text("import torch\n" + text.replace(last, body))
    policy = build_policy("every_other", {}, [file])
    cache = cache_of(llama, example("streaming_llm"))
    with pytest.raises(UserError, match=rf"^policy every_other.*{message}"):
        evict(cache, policy)
    assert cache.size == 60


def test_h2o_gives_half_the_budget_to_the_last_slots() -> None:
    found = build_policy("h2o", {}).keep(random_view(50, 10))
    assert found.shape == (2, 2, 10)
    assert (found[..., 5:] == torch.arange(45, 50)).all()


def test_without_scores_attention_top_waits_and_attention_bottom_draws() -> None:
    blind = random_view(50, 9, scored=False)
    assert not build_policy("attention_top", {}).should_evict(blind)
    bottom, drawn = (
        build_policy("attention_bottom", {}),
        build_policy("random", {"keep_ratio": 0.5}),
    )
    twin = random_view(50, 9, scored=False)
    assert torch.equal(bottom.keep(blind), drawn.keep(twin))


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("streaming_lm", {}, "did you mean 'streaming_llm'"),
        ("random", {"keep_ration": 0.5}, "did you mean 'keep_ratio'"),
        ("random", {"keep_ratio": 1.5}, "above 0 and at most 1"),
        ("random", {}, "keep_ratio"),
        ("block", {"which": "centre"}, "choose one of first, middle, last"),
        ("streaming_llm", {"sinks": -1}, "at least 0"),
        ("streaming_llm", {"sinks": 2.5}, "sinks is 2.5; it must be of type int"),
        ("snapkv", {"kernel": 4}, "kernel is 4; it must be an odd number"),
        ("snapkv", {"window": "32"}, "window is '32'; it must be of type int"),
        ("random", {"keep_ratio": float("nan")}, "keep_ratio is nan; it must be a finite number"),
        ("attention_top", {"age_normalised": 1}, "must be of type bool"),
        ("chunkkv", {"policy": "snapvk"}, r"^policy chunkkv, policy: .* did you mean 'snapkv'"),
        ("chunkkv", {"policy": {"kind": "cur", "sinks": -1}}, "policy cur: sinks is -1"),
        ("chunkkv", {"policy": {"chunk": 3}}, "it must be a kind, or have a `kind`"),
        ("chunkkv", {"policy": "baseline"}, "baseline ranks nothing"),
    ],
)
def test_a_mistaken_entry_is_refused_with_the_remedy(
    kind: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_policy(kind, parameters)


OWN = '''
from dataclasses import dataclass
from typing import ClassVar
from torch import Tensor
from kvfidelity import CacheView, Policy, parameter

@dataclass(frozen=True)
class EveryOther(Policy):
    """Keeps every `step`-th slot first."""
    kind: ClassVar[str] = "every_other"
    step: int = parameter(2, doc="distance", low=1)
    def priority(self, view: CacheView) -> Tensor:
        return -(view.token_index[0, 0] % self.step)
'''


def test_a_policy_in_a_file_of_your_own_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert build_policy("every_other", {"step": 3}, [file]).keep(random_view(30, 7)).numel() == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1", "defines no policy"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        (OWN.replace("every_other", "random"), "exists already"),
    ],
)
def test_a_policy_file_that_cannot_be_used_is_named(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=rf"mine\.py.*{message}"):
        known_policies([file])


def kept_by_spans(**parameters: Any) -> list[int]:
    """Of 100 slots 40, of which the first 10 and the last 10 are pinned."""
    view = random_view(100, 40)
    view = dataclasses.replace(view, token_index=torch.arange(100)[None, None], tokens_seen=100)
    policy = build_policy("hybrid", {"gist": 0.25, "recent": 0.25, **parameters})
    kept: list[int] = policy.keep(view).reshape(-1, 40)[0].tolist()
    return kept


@pytest.mark.parametrize("granularity", ["shared", "head"])
@pytest.mark.parametrize("score", ["attention", "window", "keydiff", "rank_mean"])
def test_hybrid_keeps_gist_recent_slots_and_whole_spans(score: str, granularity: str) -> None:
    found = kept_by_spans(span=5, score=score, granularity=granularity, window=10)
    assert found[:10] == list(range(10)) and found[-10:] == list(range(90, 100))
    middle = [slot for slot in found if 10 <= slot < 90]
    assert len(middle) == 20
    assert sorted({slot // 5 for slot in middle}) == [slot // 5 for slot in middle[::5]]


def test_hybrids_parts_can_be_taken_away() -> None:
    scattered = kept_by_spans(span=1)
    middle = torch.tensor([slot for slot in scattered if 10 <= slot < 90])
    assert (middle.diff() == 1).sum() < 15, "without spans slots are scattered"
    assert kept_by_spans(gist=0)[:4] == [0, 1, 2, 3], "without a gist the sinks stay"
    without_middle = kept_by_spans(gist=0.25, recent=0.75)
    assert without_middle == [*range(10), *range(70, 100)]


def test_hybrid_ranks_a_span_by_its_mean_and_fills_the_budget_with_part_of_one() -> None:
    view = random_view(40, 12, scored=False)
    view = dataclasses.replace(view, token_index=torch.arange(40)[None, None], tokens_seen=40)
    policy = build_policy("hybrid", {"gist": 0, "recent": 0, "sinks": 0, "span": 8, "window": 3})
    assert isinstance(policy, Hybrid)
    by_window = dataclasses.replace(policy, score="window")
    votes = torch.stack([view.window_attention(layer) for layer in range(2)]).mean((0, 1, 2))
    means = votes.view(5, 8).mean(1)
    first, second = means.topk(2).indices.tolist()
    expected = {*range(8 * first, 8 * first + 8), *range(8 * second, 8 * second + 4)}
    assert set(by_window.keep(view).tolist()) == expected


def test_a_span_stays_the_same_however_often_the_cache_is_evicted() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0])
    token = torch.tensor([0, 3, 4, 8, 11])[None, None]
    assert span_means(scores, span_numbers(token, 4)).tolist() == [2.0, 2.0, 5.0, 8.0, 8.0]


MESSAGES = ((0, 20), (20, 32), (32, 51))


def test_spans_can_be_messages() -> None:
    view = random_view(60, 30)
    view = dataclasses.replace(
        view, token_index=torch.arange(60)[None, None], tokens_seen=60, messages=(0, 20, 32, 51)
    )
    entry = {"sinks": 0, "gist": 0, "recent": 0.3, "spans": "messages"}
    found = build_policy("hybrid", entry).keep(view).tolist()
    assert found[-9:] == list(range(51, 60))
    parts = [[slot for slot in found if start <= slot < stop] for start, stop in MESSAGES]
    sizes = [stop - start for start, stop in MESSAGES]
    cut = [part for part, size in zip(parts, sizes, strict=True) if 0 < len(part) < size]
    assert len(cut) == 1, "21 slots hold no two whole messages"
    assert cut[0] == list(range(cut[0][0], cut[0][-1] + 1)), "its first slots"
    unknown = dataclasses.replace(view, messages=None)
    with pytest.raises(UserError, match="no messages are known"):
        build_policy("hybrid", entry).keep(unknown)


def test_random_spans_keeps_as_many_spans_as_hybrid_and_draws_them() -> None:
    view = random_view(100, 40)
    view = dataclasses.replace(view, token_index=torch.arange(100)[None, None], tokens_seen=100)
    entry = {"gist": 0.25, "recent": 0.25, "span": 5}
    drawn = []
    for seed in range(2):
        other = dataclasses.replace(view, rng=np.random.default_rng(seed))
        kept_slots = build_policy("random_spans", entry).keep(other).tolist()
        middle = [slot for slot in kept_slots if 10 <= slot < 90]
        assert len(middle) == 20 and len({slot // 5 for slot in middle}) == 4
        drawn.append(middle)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("kind", ["hybrid", "random_spans"])
def test_shares_of_more_than_the_budget_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"gist 0\.6 and recent 0\.5 are shares of one budget"):
        build_policy(kind, {"gist": 0.6, "recent": 0.5})


def test_hybrid_asks_only_for_what_its_score_is_made_of() -> None:
    needs = {
        score: (policy.needs_scores, policy.query_window)
        for score in ("attention", "window", "keydiff", "rank_mean")
        for policy in [build_policy("hybrid", {"score": score})]
    }
    assert needs == {
        "attention": (True, 0),
        "window": (False, 32),
        "keydiff": (False, 0),
        "rank_mean": (True, 32),
    }
