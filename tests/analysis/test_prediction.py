"""Rank correlations and the intervals around them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from kvfidelity.analysis.prediction import predictors, rank_correlation
from scipy import stats

OPTIONS = {"confidence": 0.95, "resamples": 500, "seed": 0}


def planted(rng: np.random.Generator, dialogues: int) -> tuple[np.ndarray, ...]:
    names = np.repeat([f"{n:03d}" for n in range(dialogues)], 8)
    one = rng.normal(0, 1, names.size)
    level = np.repeat(rng.normal(0, 0.5, dialogues), 8)
    return one, one + level + rng.normal(0, 1, names.size), names


def test_the_correlation_is_spearmans() -> None:
    one, other, names = planted(np.random.default_rng(0), 10)
    found = rank_correlation(one, np.round(other, 1), names, **OPTIONS)
    assert found is not None
    assert found["correlation"] == pytest.approx(stats.spearmanr(one, np.round(other, 1)).statistic)


def test_intervals_cover_what_was_planted() -> None:
    rng = np.random.default_rng(1)
    truth = stats.spearmanr(*planted(rng, 20_000)[:2]).statistic
    hits = 0
    for seed in range(200):
        found = rank_correlation(*planted(rng, 20), **OPTIONS | {"seed": seed})
        assert found is not None
        hits += found["low"] <= truth <= found["high"]  # type: ignore[operator]
    assert 0.9 <= hits / 200 <= 0.99


def test_ranking_once_is_as_good_as_ranking_in_each_resample() -> None:
    one, other, names = planted(np.random.default_rng(2), 25)
    found = rank_correlation(one, other, names, **OPTIONS)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(500):
        rows = np.concatenate([np.arange(8) + 8 * pick for pick in rng.integers(0, 25, 25)])
        drawn.append(stats.spearmanr(one[rows], other[rows]).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found is not None
    assert found["low"] == pytest.approx(low, abs=0.05)
    assert found["high"] == pytest.approx(high, abs=0.05)


def test_how_far_a_measure_is_behind_the_best() -> None:
    """The loss itself with little noise, with much, and that again under another name."""
    rng = np.random.default_rng(5)
    _, loss, names = planted(rng, 30)
    turns = pl.DataFrame(
        {
            "model": "m",
            "dataset": "d",
            "dialogue": names,
            "excess_nll": loss,
            "after_eviction": True,
            "inside_window": True,
            "near": -loss + rng.normal(0, 0.5, loss.size),
            "far": loss + rng.normal(0, 3, loss.size),
        }
    ).with_columns(twin=-pl.col("near"))
    found = predictors(turns, ("near", "far", "twin"), OPTIONS)
    rows = {row["metric"]: row for row in found.to_dicts()}
    assert rows["near"]["correlation"] < 0
    assert rows["near"]["behind"] is None
    assert rows["far"]["behind_low"] > 0
    apart = abs(rows["near"]["correlation"]) - rows["far"]["correlation"]
    assert rows["far"]["behind"] == pytest.approx(apart)
    assert rows["twin"]["behind"] == pytest.approx(0)
    assert rows["twin"]["behind_low"] == pytest.approx(0)


def test_what_does_not_vary_has_none() -> None:
    names = np.array(["a", "a", "b", "b"])
    assert rank_correlation(np.ones(4), np.arange(4.0), names, **OPTIONS) is None
