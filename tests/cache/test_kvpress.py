"""The same kept indices as kvpress on the same tensors, or the difference explained.

kvpress_reference.py wrote kvpress.json in a separate environment.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvfidelity.cache.calibration import Calibration, query_filters
from kvfidelity.cache.layer_view import LayerView
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.ragged import RaggedKeepSet, apportion
from kvfidelity.cache.repetition import part_weights
from kvfidelity.cache.view import CacheView
from tests.cache.crosscheck import (
    BUDGET,
    CHUNK,
    GROUPS,
    LAG,
    PARTS,
    SEEDS,
    SINKS,
    SIZE,
    SKETCH,
    SLOTS,
    STRETCH,
    WINDOW,
    ZIPPED,
    angles,
    filters,
    tensors,
)
from tests.cache.views import Repeated

REFERENCE = json.loads(Path(__file__).with_name("kvpress.json").read_text())
KEPT, PYRAMIDS = REFERENCE["kept"], REFERENCE["pyramids"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "snapkv": {"window": WINDOW, "kernel": 5},
    "streaming_llm": {"sinks": 4},
    "expected_attention": {"window": SLOTS},
    "lagkv": {"lag": LAG},
    "leverage_score": {"sketch": SKETCH},
    "finch": {"window": WINDOW},
    "criticalkv": {"policy": {"kind": "snapkv", "window": WINDOW}},
    "adakv": {"policy": "knorm"},
    "chunkkv": {"policy": "knorm", "chunk": CHUNK},
    "per_chunk": {"policy": "knorm", "chunk": STRETCH},
}


def unrotated(position: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*position.shape, SIZE)
    return torch.ones(shape), torch.zeros(shape)


def llama_angles(position: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return angles(position)


def kept(kind: str, seed: int, extra_queries: int = 0) -> Any:
    """What a policy keeps; `extra_queries`: how many more queries the cache holds than given."""
    given = tensors(seed)
    queries = given["history" if kind == "expected_attention" else "queries"]
    earlier = torch.randn(queries.shape[0], extra_queries, SIZE)
    queries = torch.cat([earlier, queries], dim=1)
    layer = LayerView(
        given["keys"],
        lambda: given["keys"],
        given["values"],
        queries,
        lambda: given["projection"],
    )
    index = torch.arange(SLOTS)[None, None]
    view = CacheView(
        budget=BUDGET,
        token_index=index,
        position=index,
        next_position=SLOTS,
        tokens_seen=SLOTS,
        rng=np.random.default_rng(seed),
        layers=[layer],
        scaling=SIZE**-0.5,
        angles=llama_angles if kind == "expected_attention" else unrotated,
        known_heads=Calibration(filters(seed)[None], torch.zeros(1, 2)),
    )
    return build_policy(kind, PARAMETERS.get(kind, {})).keep(view)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "kind",
    [
        "snapkv",
        "keydiff",
        "knorm",
        "expected_attention",
        "lagkv",
        "leverage_score",
        "cur",
        "finch",
        "qfilter",
        "criticalkv",
        "per_chunk",
    ],
)
def test_the_same_slots_per_head(kind: str, seed: int) -> None:
    assert kept(kind, seed)[0].tolist() == KEPT[kind][str(seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_chunkkv_keeps_the_same_chunks_for_every_head(seed: int) -> None:
    """The budget is three chunks here; where it is not, kvpress keeps fewer slots than it."""
    assert [kept("chunkkv", seed)[0].tolist()] * 2 == KEPT["chunkkv"][str(seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_adakv_shares_a_layers_budget_out_as_kvpress_does(seed: int) -> None:
    found = kept("adakv", seed)
    assert isinstance(found, RaggedKeepSet)
    assert [row.tolist() for row in found.rows()[0]] == KEPT["adakv"][str(seed)]


def view_of_layers(seeds: list[int], slots: int, budget: int, **more: Any) -> CacheView:
    """The first `slots` slots of one layer per seed, without any rotation."""
    layers = []
    for given in map(tensors, seeds):
        keys = given["keys"][:, :slots]
        values = given["values"][:, :slots]
        layers.append(LayerView(keys, partial(_same, keys), values, given["queries"]))
    index = torch.arange(slots)[None, None]
    return CacheView(
        budget=budget,
        token_index=index,
        position=index,
        next_position=slots,
        tokens_seen=slots,
        rng=np.random.default_rng(0),
        layers=layers,
        scaling=SIZE**-0.5,
        angles=unrotated,
        **more,
    )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.mark.parametrize("seed", SEEDS)
def test_kvzip_shares_the_budget_out_over_layers_and_heads_as_kvpress_does(seed: int) -> None:
    """Two layers, whose text is repeated in two parts by the queries of the last slots."""
    weights = torch.zeros(2, GROUPS, SLOTS - WINDOW)
    for layer, row in enumerate(view_of_layers([seed, seed + 1], SLOTS, 1).by_head()):
        for group, head in enumerate(row):
            for first, stop in PARTS:
                weights[layer, group] += part_weights(head, WINDOW, first, stop - 1, SINKS)
    repeated: Any = Repeated(weights)
    view = view_of_layers([seed, seed + 1], SLOTS - WINDOW, ZIPPED, repetition=repeated)
    kept = build_policy("kvzip", {"sinks": SINKS}).keep(view)
    assert isinstance(kept, RaggedKeepSet)
    found = [row.tolist() for layer in kept.rows() for row in layer]
    assert found == KEPT["kvzip"][str(seed)]
    assert len({len(row) for row in found}) > 1, "heads differ"


@pytest.mark.parametrize("case", range(len(PYRAMIDS)))
def test_pyramidkvs_layers_differ_by_the_rounding_alone(case: int) -> None:
    """kvpress rounds each layer by itself and may miss the total; here the total is exact."""
    slots, share, window, beta, layers, theirs = PYRAMIDS[case]
    budget = round(slots * share)
    inner = build_policy("snapkv", {"window": window})
    policy = build_policy("pyramidkv", {"policy": inner, "beta": beta})
    keys = torch.zeros(1, slots, 1)
    view = CacheView(
        budget=budget,
        token_index=torch.arange(slots)[None, None],
        position=torch.arange(slots)[None, None],
        next_position=slots,
        tokens_seen=slots,
        rng=np.random.default_rng(0),
        layers=[LayerView(keys, lambda: keys, keys)] * layers,
    )
    grid = torch.ones(layers, 1, dtype=torch.int64)
    shares = policy.shares(view, torch.zeros(layers, 1, slots)).expand(layers, 1)
    ours = apportion(shares, budget * layers, grid, slots * grid)[:, 0]
    assert int(ours.sum()) == budget * layers
    assert (ours - torch.tensor(theirs)).abs().max() <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_filter_is_the_main_direction_of_the_queries(seed: int) -> None:
    """By an eigenvalue decomposition in float64; kvpress was given these filters, negated."""
    found = query_filters(tensors(seed)["queries"]).view(2, 3, SIZE).mean(1)
    assert torch.allclose(found, filters(seed), atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["snapkv", "tova"])
def test_a_cache_that_keeps_more_queries_changes_nothing(kind: str, seed: int) -> None:
    assert torch.equal(kept(kind, seed, extra_queries=56), kept(kind, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_more_queries_than_slots_are_not_looked_through(seed: int) -> None:
    assert kept("expected_attention", seed, 60).shape == (1, 2, BUDGET)
    assert torch.equal(kept("expected_attention", seed, 60), kept("expected_attention", seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_streaming_llm_keeps_the_same_slots_for_every_head(seed: int) -> None:
    assert [kept("streaming_llm", seed).tolist()] * 2 == KEPT["streaming_llm"][str(seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_tova_differs_only_in_the_last_slot(seed: int) -> None:
    """kvpress always keeps the last slot, as its docs say; TOVA ranks it like any other."""
    ours, theirs = kept("tova", seed)[0].tolist(), KEPT["tova"][str(seed)]
    assert theirs[0] == theirs[1], "one keep set for all heads of a layer"
    assert set(theirs[0]) - {SLOTS - 1} <= set(ours)
    assert len(set(ours) - set(theirs[0])) <= 1
