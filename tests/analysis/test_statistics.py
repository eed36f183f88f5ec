"""Estimates and their intervals, checked by simulation where theory gives no number."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvfidelity.analysis.statistics import (
    clustered_mean,
    clustered_share,
    holm,
    percentile_interval,
    signed_rank,
)

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-1e6, 1e6)
#: Few values, so that columns are often constant, and few dialogues, so that one is often alone.
WEIGHTS = st.sampled_from([0.0, 0.0, 1.0, 60.0])
DIALOGUES = st.sampled_from(["000", "001", "002"])


def turns(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[np.ndarray, ...]]:
    """Values, weights and dialogues of a few turns."""
    few = st.lists(values, min_size=1, max_size=2).flatmap(st.sampled_from)
    rows = st.lists(st.tuples(values | few, WEIGHTS, DIALOGUES), max_size=20)
    return rows.map(
        lambda rows: (
            np.array([row[0] for row in rows]),
            np.array([row[1] for row in rows]),
            np.array([row[2] for row in rows], dtype=str),
        )
    )


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


@given(turns(FLOATS))
def test_no_mean_of_finite_turns_is_not_finite(sample: tuple[np.ndarray, ...]) -> None:
    found = asdict(clustered_mean(*sample, resamples=20))
    assert all(value is None or math.isfinite(value) for value in found.values())


@given(turns(st.sampled_from([0.0, 1.0])), st.booleans())
def test_no_share_is_not_finite(sample: tuple[np.ndarray, ...], paired: bool) -> None:
    values, weights, dialogues = sample
    if paired:
        values = values - values[::-1]
    found = asdict(clustered_share(values, weights, dialogues, resamples=20, paired=paired))
    assert all(value is None or -1 <= value <= values.size for value in found.values())


@given(turns(MODERATE))
def test_an_estimate_is_missing_only_where_it_is_undefined(sample: tuple[np.ndarray, ...]) -> None:
    values, weights, dialogues = sample
    found = clustered_mean(values, weights, dialogues, resamples=20)
    counted = weights > 0
    clusters = len(set(dialogues[counted]))
    assert (found.n_turns, found.n_dialogues) == (counted.sum(), clusters)
    assert (found.mean is None) == (clusters == 0)
    assert (found.low is None) == (found.high is None) == (clusters < 2)
    if found.mean is not None:
        assert found.mean == pytest.approx(
            np.average(values[counted], weights=weights[counted]), rel=1e-9, abs=1e-6
        )


def test_what_is_not_finite_is_left_out_and_not_counted() -> None:
    names = np.array(["a", "a", "b", "b"])
    values = np.array([1.0, math.nan, 3.0, math.inf])
    found = clustered_mean(values, np.ones(4), names, resamples=20)
    assert (found.mean, found.n_dialogues, found.n_turns) == (2.0, 2, 2)
    assert signed_rank(np.array([3.0, 1.0, -2.0, math.nan, math.inf]))[1] == pytest.approx(1 / 3)


@given(st.lists(st.none() | st.floats(0, 1) | st.just(math.nan)))
def test_holm_adjusts_what_is_finite(p_values: list[float | None]) -> None:
    known = [p is not None and math.isfinite(p) for p in p_values]
    adjusted = holm(p_values)
    assert [p is not None for p in adjusted] == known
    assert all(p is None or p_values[at] <= p <= 1 for at, p in enumerate(adjusted))  # type: ignore[operator]


def test_an_interval_needs_nine_in_ten_resamples() -> None:
    drawn = np.arange(10.0)
    drawn[3] = math.inf
    assert percentile_interval(drawn, 5, 0.95) == (pytest.approx(0, abs=0.1), pytest.approx(9, 0.1))
    drawn[4] = math.nan
    assert percentile_interval(drawn, 5, 0.95) == (None, None)
    assert percentile_interval(np.arange(10.0), 1, 0.95) == (None, None)
    assert percentile_interval(np.full(10, math.nan), 5, 0.95) == (None, None)
