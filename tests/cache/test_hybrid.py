"""Hybrid policies: pinned ends and spans of the middle; random spans, their control."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.policies.hybrid import Hybrid, span_means, span_numbers
from kvfidelity.errors import UserError
from tests.cache.views import random_view


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
