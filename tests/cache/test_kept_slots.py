"""What single policies keep: by place, by attention, with sinks and recent slots."""

from __future__ import annotations

import pytest
import torch

from kvfidelity.cache.policies import build_policy
from tests.cache.policy_examples import (
    kept,
)
from tests.cache.views import random_view


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


def test_age_normalised_scores_do_not_favour_the_old() -> None:
    view = random_view(50, 9)
    rank = build_policy("attention_top", {"age_normalised": True}).priority(view)
    ages = (view.tokens_seen - view.token_index)[0, 0]
    assert torch.allclose(rank * ages, view.attention("latest").mean((0, 1)), rtol=1e-4)


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
