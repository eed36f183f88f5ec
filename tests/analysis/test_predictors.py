"""Rank correlations and the intervals around them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvfidelity.analysis.finite import not_finite
from kvfidelity.analysis.predictors import predictors, rank_correlation

OPTIONS = {"confidence": 0.95, "resamples": 500, "seed": 0}


def correlated_sample(rng: np.random.Generator, dialogues: int) -> tuple[np.ndarray, ...]:
    names = np.repeat([f"{n:03d}" for n in range(dialogues)], 8)
    one = rng.normal(0, 1, names.size)
    level = np.repeat(rng.normal(0, 0.5, dialogues), 8)
    return one, one + level + rng.normal(0, 1, names.size), names


def test_the_correlation_is_spearmans() -> None:
    one, other, names = correlated_sample(np.random.default_rng(0), 10)
    found = rank_correlation(one, np.round(other, 1), names, confidence=0.95)
    assert found is not None
    assert found["correlation"] == pytest.approx(stats.spearmanr(one, np.round(other, 1)).statistic)


def test_intervals_cover_the_true_correlation() -> None:
    rng = np.random.default_rng(1)
    truth = stats.spearmanr(*correlated_sample(rng, 20_000)[:2]).statistic
    hits = 0
    for _ in range(200):
        found = rank_correlation(*correlated_sample(rng, 20), confidence=0.95)
        assert found is not None
        hits += found["low"] <= truth <= found["high"]  # type: ignore[operator]
    assert 0.9 <= hits / 200 <= 0.99


def test_ranking_once_is_as_good_as_ranking_without_each_dialogue() -> None:
    one, other, names = correlated_sample(np.random.default_rng(2), 25)
    found = rank_correlation(one, other, names, confidence=0.95)
    assert found is not None
    scaled = np.arctanh(stats.spearmanr(one, other).statistic)
    without = np.arctanh(
        [
            stats.spearmanr(one[names != name], other[names != name]).statistic
            for name in np.unique(names)
        ]
    )
    half = stats.t.isf(0.025, 24) * np.sqrt(24 / 25 * ((without - scaled) ** 2).sum())
    assert found["low"] == pytest.approx(np.tanh(scaled - half), abs=0.02)
    assert found["high"] == pytest.approx(np.tanh(scaled + half), abs=0.02)


def cells(loss: np.ndarray, **measures: np.ndarray) -> pl.DataFrame:
    """Turns of cells, each array being [dialogues, turns, cells]."""
    dialogue, turn, _ = (part.ravel() for part in np.indices(loss.shape))
    return pl.DataFrame(
        {
            "model": "m",
            "dataset": "d",
            "dialogue": [f"{number:03d}" for number in dialogue],
            "seed": 0,
            "turn": turn,
            "excess_nll": loss.ravel(),
            "after_eviction": True,
            "inside_window": True,
        }
        | {name: values.ravel() for name, values in measures.items()}
    )


def test_what_differs_between_dialogues_and_turns_predicts_nothing() -> None:
    """A measure that grows with a turn's loss, but is alike for its cells, orders none of them; one
    that orders them is found although turns differ by far more."""
    rng = np.random.default_rng(6)
    own, level = rng.normal(0, 1, (20, 5, 6)), rng.normal(0, 50, (20, 5, 1))
    length = np.broadcast_to(level, own.shape)
    found = predictors(
        cells(own + level, length=length, own=own - level), ("length", "own"), OPTIONS
    )
    assert found["metric"].to_list() == ["own"]
    assert found["correlation"].item() > 0.99


def test_chance_is_found_at_its_rate() -> None:
    """Of 200 measures that know nothing of the loss, about 5% have an interval without 0."""
    rng = np.random.default_rng(8)
    shape = (12, 4, 6)
    names = tuple(f"m{number:03d}" for number in range(200))
    turns = cells(rng.normal(0, 1, shape), **{name: rng.normal(0, 1, shape) for name in names})
    found = predictors(turns, names, OPTIONS | {"resamples": 200})
    wrong = found.filter((pl.col("low") > 0) | (pl.col("high") < 0)).height
    assert wrong <= 20


def test_the_strongest_measure_comes_first_and_is_not_compared() -> None:
    """The loss itself with little noise, with much: to choose the best and to test the others
    against it on the same data would favour it."""
    rng = np.random.default_rng(5)
    loss = rng.normal(0, 1, (30, 6, 8))
    found = predictors(
        cells(
            loss,
            far=loss + rng.normal(0, 3, loss.shape),
            near=-loss + rng.normal(0, 0.5, loss.shape),
        ),
        ("far", "near"),
        OPTIONS,
    )
    assert found["metric"].to_list() == ["near", "far"]
    assert found["correlation"][0] < 0
    assert found["n_dialogues"].to_list() == [30, 30]
    assert found["n_turns"].to_list() == [180, 180]
    assert not [name for name in found.columns if "best" in name]


def test_what_does_not_vary_has_none() -> None:
    names = np.array(["a", "a", "b", "b"])
    assert rank_correlation(np.ones(4), np.arange(4.0), names, confidence=0.95) is None


COLUMNS = st.sampled_from([0.0, 1.0, 2.0]) | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(COLUMNS, COLUMNS, st.sampled_from(["a", "b", "c"])), max_size=20)


@given(ROWS)
def test_no_correlation_of_finite_columns_is_not_finite(
    rows: list[tuple[float, float, str]],
) -> None:
    one, other = (np.array([row[column] for row in rows]) for column in (0, 1))
    names = np.array([row[2] for row in rows], dtype=str)
    found = rank_correlation(one, other, names, confidence=0.95)
    undefined = len(rows) < 3 or len(set(one)) == 1 or len(set(other)) == 1
    assert (found is None) == undefined
    if found is not None:
        ends = [found[name] for name in ("correlation", "low", "high") if found[name] is not None]
        assert all(-1 - 1e-9 <= end <= 1 + 1e-9 for end in ends)  # type: ignore[operator]
        assert (found["low"] is None) == (found["high"] is None)
        assert found["low"] is None or len(set(names)) > 1


@given(ROWS)
def test_no_predictor_of_finite_turns_is_not_finite(rows: list[tuple[float, float, str]]) -> None:
    turns = pl.DataFrame(
        {
            "seed": [0 for _ in rows],
            "turn": [0 for _ in rows],
            "dialogue": [row[2] for row in rows],
            "excess_nll": [row[0] for row in rows],
            "one": [row[1] for row in rows],
            "other": [float(row[2] == "a") for row in rows],
            "constant": [1.0 for _ in rows],
            "missing": [None for _ in rows],
        },
        {"seed": pl.Int32, "turn": pl.Int32, "dialogue": pl.String}
        | dict.fromkeys(("excess_nll", "one", "other", "constant", "missing"), pl.Float64),
    ).with_columns(model=pl.lit("m"), dataset=pl.lit("d"), after_eviction=True, inside_window=True)
    metrics = ("one", "other", "constant", "missing")
    found = predictors(turns, metrics, OPTIONS | {"resamples": 50})
    assert not_finite(found) == []
    assert not set(found["metric"]) & {"constant", "missing"}


def test_a_column_that_varies_in_one_dialogue_alone_has_no_interval() -> None:
    """Without that dialogue it does not vary."""
    rng = np.random.default_rng(7)
    _, loss, names = correlated_sample(rng, 6)
    alone = np.where(names == "000", rng.normal(0, 1, names.size), 0.0)
    found = rank_correlation(alone, loss, names, confidence=0.95)
    assert found is not None
    assert (found["low"], found["high"], found["n_dialogues"]) == (None, None, 6)


@pytest.mark.parametrize(("dialogues", "known"), [(2, False), (3, True), (6, True)])
def test_columns_that_are_constant_within_a_dialogue(dialogues: int, known: bool) -> None:
    """Without one of two dialogues they do not vary. A variance of 0 is not mistaken for a small
    one because of rounding."""
    names = np.repeat([f"{n:03d}" for n in range(dialogues)], 7)
    level = np.repeat(np.arange(dialogues) / 3, 7)
    rng = np.random.default_rng(0)
    found = rank_correlation(level, rng.normal(0, 1, level.size), names, confidence=0.95)
    assert found is not None
    assert (found["low"] is not None) == known


def test_a_correlation_of_one_has_no_interval() -> None:
    one, _, names = correlated_sample(np.random.default_rng(0), 10)
    found = rank_correlation(one, 2 * one, names, confidence=0.95)
    assert found is not None and found["correlation"] == pytest.approx(1)
    assert (found["low"], found["strict_high"]) == (None, None)


def test_turns_with_a_missing_value_are_not_counted() -> None:
    one, other, names = correlated_sample(np.random.default_rng(0), 10)
    gaps = np.where(np.arange(one.size) % 5 == 0, np.nan, one)
    found = rank_correlation(gaps, other, names, confidence=0.95)
    kept = np.isfinite(gaps)
    assert found == rank_correlation(one[kept], other[kept], names[kept], confidence=0.95)
    assert found is not None
    assert found["n_turns"] == kept.sum() == 64
