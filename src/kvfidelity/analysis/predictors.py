"""How well each integrity metric predicts the loss: rank correlations with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import (
    Floats,
    column_mean,
    dialogue_draws,
    percentile_interval,
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


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation, and what it is in resamples of dialogues: NaN in those in which one
    of the two is constant. With one dialogue there are no resamples."""

    value: float
    resampled: Floats
    n_dialogues: int
    n_turns: int

    def summary(self, confidence: float) -> dict[str, float | int | None]:
        """correlation, low, high, n_dialogues, n_turns."""
        low, high = percentile_interval(self.resampled, self.n_dialogues, confidence)
        estimate: dict[str, float | int | None] = {
            "correlation": self.value,
            "low": low,
            "high": high,
        }
        return estimate | {"n_dialogues": self.n_dialogues, "n_turns": self.n_turns}


def bootstrap_correlation(
    one: Floats, other: Floats, dialogues: NDArray[np.str_], *, resamples: int, seed: int
) -> Correlation | None:
    """Spearman's correlation and its resamples over the turns in which both are finite; None if
    these are fewer than three or one of the two is constant.

    Ranks are taken once, over all turns, and not again in each resample: a dialogue then counts by
    six sums, and a million turns cost no more than their ranking. With one seed the same dialogues
    are drawn for every pair of columns.
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
    resampled = np.empty(0)
    if len(names) > 1:
        counts = dialogue_draws(len(names), resamples, seed)
        varied = _varies(x, groups, counts) & _varies(y, groups, counts)
        resampled = np.where(varied, _pearson(sums @ counts.T), np.nan)
    return Correlation(float(_pearson(sums.sum(axis=1))), resampled, len(names), one.size)


def rank_correlation(
    one: Floats,
    other: Floats,
    dialogues: NDArray[np.str_],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, float | int | None] | None:
    """`bootstrap_correlation` summed up: correlation, low, high, n_dialogues, n_turns."""
    found = bootstrap_correlation(one, other, dialogues, resamples=resamples, seed=seed)
    return None if found is None else found.summary(confidence)


def _varies(values: Floats, dialogues: NDArray[np.intp], counts: Floats) -> NDArray[np.bool_]:
    """Whether values differ in each resample, counts being [resamples, dialogues].

    The sums that `_pearson` is made of cannot tell: what should be a variance of 0 is rounding.
    """
    lowest = np.full(counts.shape[1], np.inf)
    highest = -lowest
    np.minimum.at(lowest, dialogues, values)
    np.maximum.at(highest, dialogues, values)
    drawn = counts > 0
    varied: NDArray[np.bool_] = np.where(drawn, lowest, np.inf).min(axis=1) < np.where(
        drawn, highest, -np.inf
    ).max(axis=1)
    return varied


def _pearson(sums: Floats) -> Floats:
    """From the six sums along the first axis."""
    n, x, y, xx, yy, xy = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    return value
