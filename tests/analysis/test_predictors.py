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
from kvfidelity.analysis.within_turns import centred_ranks

OPTIONS = {"confidence": 0.95, "resamples": 500, "seed": 0}


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


def test_a_correlation_of_what_does_not_vary_is_none() -> None:
    loss = np.random.default_rng(0).normal(0, 1, (3, 2, 4))
    found = rank_correlation(cells(loss, same=np.ones(loss.shape)), "same", "excess_nll", OPTIONS)
    assert found["correlation"] is found["low"] is found["strict_high"] is None
    assert (found["n_dialogues"], found["n_turns"]) == (0, 0)


def test_a_correlation_is_the_mean_of_fishers_z_over_dialogues() -> None:
    """Each dialogue has one turn, so its correlation is Spearman's among that turn's cells."""
    rng = np.random.default_rng(3)
    loss = rng.normal(0, 1, (12, 1, 9))
    own = loss + rng.normal(0, 1, loss.shape)
    found = rank_correlation(cells(loss, own=own), "own", "excess_nll", OPTIONS)
    z = [
        np.arctanh(stats.spearmanr(*pair).statistic)
        for pair in zip(loss[:, 0], own[:, 0], strict=True)
    ]
    assert found["correlation"] == pytest.approx(np.tanh(np.mean(z)))
    assert found["strict_low"] < found["low"] < found["correlation"] < found["high"]
    assert (found["n_dialogues"], found["n_turns"]) == (12, 12)


def test_recall_questions_of_one_turn_are_ranked_apart() -> None:
    """A column that differs between questions alone orders no cells."""
    rng = np.random.default_rng(4)
    question = np.broadcast_to(np.arange(5.0)[None, :, None], (6, 5, 4))
    frame = cells(question + rng.normal(0, 0.1, question.shape), hard=question)
    asked = frame.with_columns(probe=pl.col("turn"), turn=pl.lit(9))
    assert rank_correlation(asked, "hard", "excess_nll", OPTIONS)["correlation"] is None


COLUMNS = st.sampled_from([0.0, 1.0, 2.0]) | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(COLUMNS, COLUMNS, st.sampled_from(["a", "b", "c"])), max_size=20)


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


@given(st.lists(st.tuples(st.integers(0, 5), COLUMNS), min_size=1, max_size=40))
def test_ranks_are_those_of_polars_less_their_mean(rows: list[tuple[int, float]]) -> None:
    table = pl.DataFrame(rows, {"group": pl.Int64, "value": pl.Float64}, orient="row")
    dense = (pl.col("group").rank("dense") - 1).cast(pl.Int64)
    table = table.with_columns(group=dense)
    mean = (pl.len() + 1) / 2
    expected = table.select((pl.col("value").rank() - mean).over("group"))["value"]
    [ranks] = centred_ranks(table["group"].to_numpy(), table["value"].to_numpy())
    assert ranks.tolist() == expected.to_list()
