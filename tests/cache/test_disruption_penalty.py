"""The penalty for disruption around any policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity import new_cache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.policies.disruption_penalty import DisruptionPenalty
from kvfidelity.cache.view import view_of
from kvfidelity.metrics.disruption import disruption
from tests.cache.conftest import tiny

KINDS = ("keydiff", "tova", "snapkv", "h2o")
BUDGET = 16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


def fed(model: Any, mode: str, seed: int = 0) -> ManagedCache:
    cache = new_cache(model, positions=mode, query_window=32, collect_scores=True)
    ids = torch.randint(3, 90, (1, 48), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache)
    return cache


def kept(cache: ManagedCache, kind: str, weight: float | None) -> torch.Tensor:
    parameters = {"window": 8} if kind == "snapkv" else {}
    if weight is None:
        policy = build_policy(kind, parameters)
    else:
        wrapped = {"kind": kind} | parameters
        policy = build_policy("disruption_penalty", {"policy": wrapped, "weight": weight})
    found = policy.keep(view_of(cache, BUDGET, 0))
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_or_true_positions_keep_what_the_wrapped_policy_keeps(
    model: Any, kind: str
) -> None:
    for mode, weight in (("stale", 0.0), ("rerotated", 0.0), ("original", 3.0), ("shifted+0", 3.0)):
        cache = fed(model, mode)
        assert torch.equal(kept(cache, kind, weight), kept(cache, kind, None))


@pytest.mark.parametrize("mode", ["stale", "rerotated"])
def test_a_weight_lowers_the_disruption_by_positions(model: Any, mode: str) -> None:
    """On the mean of several conversations, with a policy that ranks each kv head for itself."""
    found = dict.fromkeys((0.0, 0.5, 8.0), 0.0)
    for seed in range(6):
        cache = fed(model, mode, seed)
        for weight in found:
            measured = disruption(cache, kept(cache, "keydiff", weight), 32)
            assert measured is not None
            found[weight] += float(measured.positions.mean())
    assert found[0.0] > found[0.5] > found[8.0]


def test_pinned_and_protected_slots_survive_any_weight(model: Any) -> None:
    cache = fed(model, "stale")
    pins = {"kind": "streaming_llm", "sinks": 4}
    policy = build_policy("disruption_penalty", {"policy": pins, "weight": 100.0})
    view = view_of(cache, BUDGET, 0, ((40, 48),))
    found = policy.keep(view)
    assert isinstance(found, torch.Tensor) and found.shape[-1] == BUDGET
    assert {0, 1, 2, 3, *range(40, 48)} <= set(found.flatten().tolist())


def test_it_needs_what_the_wrapped_policy_needs() -> None:
    policy = build_policy("disruption_penalty", {"policy": {"kind": "h2o"}, "window": 8})
    assert isinstance(policy, DisruptionPenalty) and policy.needs_scores
    assert policy.query_window == 8
    wide = build_policy("disruption_penalty", {"policy": {"kind": "snapkv", "window": 64}})
    assert wide.query_window == 64
