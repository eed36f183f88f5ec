"""How well each integrity metric predicts the loss: rank correlations with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import (
    Floats,
    Interval,
    column_mean,
    jackknife_error,
    strict_confidence,
    t_interval,
)
from kvfidelity.analysis.within_turns import fisher_by_dialogue


def predictors(
    turns: pl.DataFrame, metrics: tuple[str, ...], options: Mapping[str, Any]
) -> pl.DataFrame:
    """Rank correlation of each metric with excess NLL among the cells of one dialogue and turn.

    One row per model, data set and metric, the strongest first; metrics that do not vary within
    turns are left out. Correlations are averaged over dialogues on Fisher's scale, see
    `within_turns`; turns after an eviction and inside the window count.
    """
    has_excess = pl.col("excess_nll").is_not_null()
    columns = ("model", "dataset", "dialogue", "seed", "turn", "excess_nll", *metrics)
    chosen = turns.lazy().filter("after_eviction", "inside_window", has_excess).select(columns)
    rows = []
    for (model, dataset), part in chosen.collect().group_by(
        "model", "dataset", maintain_order=True
    ):
        for metric in metrics:
            by_dialogue = fisher_by_dialogue(part, metric, "excess_nll")
            found = column_mean(by_dialogue, pl.col("z"), pl.lit(1), options)
            if found.mean is None:
                continue
            ends = {"correlation": found.mean, "low": found.low, "high": found.high}
            scaled = {name: None if z is None else math.tanh(z) for name, z in ends.items()}
            about = {"model": model, "dataset": dataset, "metric": metric}
            counts = {"n_dialogues": by_dialogue.height, "n_turns": by_dialogue["n_turns"].sum()}
            rows.append(about | scaled | counts)
    order = [pl.col("model"), pl.col("dataset"), -pl.col("correlation").abs()]
    return pl.DataFrame(rows, table_schema("predictors")).sort(order)


def rank_correlation(
    one: Floats, other: Floats, dialogues: NDArray[np.str_], *, confidence: float
) -> dict[str, float | int | None] | None:
    """Spearman's correlation over the turns in which both are finite; None if these are fewer than
    three or one of the two is constant.

    Ranks are taken once, over all turns, and not again without each dialogue: a dialogue then
    counts by six sums, and a million turns cost no more than their ranking. The interval is
    Student's on Fisher's scale, with the jackknife's error over dialogues. There is none where a
    column does not vary without one of the dialogues, or the correlation is 1.

    Returns:
        correlation, low, high, strict_low, strict_high, n_dialogues, n_turns.
    """
    known = np.isfinite(one) & np.isfinite(other)
    one, other, dialogues = one[known], other[known], dialogues[known]
    if one.size < 3 or one.min() == one.max() or other.min() == other.max():
        return None
    x, y = stats.rankdata(one), stats.rankdata(other)
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    names, groups = np.unique(dialogues, return_inverse=True)
    kinds = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(groups, kind) for kind in kinds])
    total = sums.sum(axis=1)
    value = float(np.clip(_pearson(total), -1, 1))
    ends: list[Interval] = [(None, None), (None, None)]
    if len(names) > 1:
        varied = _varies_without_each(x, groups) & _varies_without_each(y, groups)
        without = np.where(varied, _pearson(total[:, None] - sums), np.nan)
        levels = (confidence, strict_confidence(confidence))
        ends = [_interval(value, without, level) for level in levels]
    return {
        "correlation": value,
        "low": ends[0][0],
        "high": ends[0][1],
        "strict_low": ends[1][0],
        "strict_high": ends[1][1],
        "n_dialogues": len(names),
        "n_turns": one.size,
    }


def _interval(value: float, without: Floats, confidence: float) -> Interval:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.arctanh(np.append(without, value))
    error = jackknife_error(float(scaled[-1]), scaled[:-1])
    if error is None:
        return None, None
    low, high = t_interval(float(scaled[-1]), error, without.size, confidence)
    return (None, None) if low is None or high is None else (math.tanh(low), math.tanh(high))


def _varies_without_each(values: Floats, dialogues: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether values differ when one dialogue is left out, for each.

    The sums that `_pearson` is made of cannot tell: what should be a variance of 0 is rounding.
    """
    lowest = np.full(dialogues.max() + 1, np.inf)
    highest = -lowest
    np.minimum.at(lowest, dialogues, values)
    np.maximum.at(highest, dialogues, values)
    others = ~np.eye(lowest.size, dtype=bool)
    varies: NDArray[np.bool_] = np.where(others, lowest, np.inf).min(axis=1) < np.where(
        others, highest, -np.inf
    ).max(axis=1)
    return varies


def _pearson(sums: Floats) -> Floats:
    """From the six sums along the first axis."""
    n, x, y, xx, yy, xy = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    return value
