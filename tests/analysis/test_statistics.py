"""Estimates and their intervals, checked by simulation where theory gives no number."""

from __future__ import annotations

import numpy as np
import pytest
from kvfidelity.analysis.statistics import clustered_mean, holm, signed_rank
from scipy import stats


def sample(rng: np.random.Generator, dialogues: int, effect: float) -> tuple[np.ndarray, ...]:
    """Ten turns a dialogue, which share a level of their own."""
    names = np.repeat([f"{n:03d}" for n in range(dialogues)], 10)
    level = np.repeat(rng.normal(effect, 1, dialogues), 10)
    return level + rng.normal(0, 1, names.size), rng.uniform(50, 300, names.size), names


def test_a_weighted_mean_by_hand() -> None:
    found = clustered_mean(
        np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 2.0]), np.array(["a", "a", "b"])
    )
    assert found.mean == pytest.approx(15 / 4)
    assert (found.n_dialogues, found.n_turns) == (2, 3)
    assert found.low is not None and found.high is not None
    assert 1.5 - 1e-9 <= found.low <= found.mean <= found.high <= 6 + 1e-9


def test_one_dialogue_gives_no_interval() -> None:
    found = clustered_mean(np.array([1.0, 2.0]), np.ones(2), np.array(["a", "a"]))
    assert (found.low, found.high, found.p) == (None, None, None)


def test_intervals_cover_at_about_their_rate() -> None:
    """Thirty dialogues, 300 simulations: a percentile bootstrap covers a little under 95%."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        values, weights, names = sample(rng, 30, 0.5)
        found = clustered_mean(values, weights, names, resamples=400, seed=seed)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert 0.89 <= hits / 300 <= 0.98


def test_ignoring_the_clusters_would_not_cover() -> None:
    """The same data with every turn its own cluster: intervals far too narrow."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        values, weights, names = sample(rng, 30, 0.5)
        own = np.array([f"{n}" for n in range(names.size)])
        found = clustered_mean(values, weights, own, resamples=400, seed=seed)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert hits / 100 < 0.75


def test_signed_rank_false_positives_are_at_their_rate() -> None:
    rng = np.random.default_rng(1)
    p_values = [signed_rank(rng.normal(0, 1, 20))[0] for _ in range(1000)]
    assert 0.03 <= np.mean([p < 0.05 for p in p_values if p is not None]) <= 0.07


@pytest.mark.parametrize("size", [4, 9])
def test_ties_are_tried_out_as_scipy_does(size: int) -> None:
    rng = np.random.default_rng(size)
    tied = rng.integers(1, 4, size) * rng.choice([-1.0, 1.0], size)
    p, _ = signed_rank(tied)
    assert p == pytest.approx(stats.wilcoxon(tied).pvalue)


def test_the_effect_is_the_rank_biserial_correlation() -> None:
    p, effect = signed_rank(np.array([3.0, 1.0, -2.0]))
    assert effect == pytest.approx((3 + 1 - 2) / 6)
    assert p is not None
    assert signed_rank(np.zeros(5)) == (None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.9, 0.9]) == [1.0, 1.0]
