"""How well each integrity metric predicts the loss: rank correlations with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import Floats, dialogue_draws, percentile_interval


def predictors(
    turns: pl.DataFrame, metrics: tuple[str, ...], options: Mapping[str, Any]
) -> pl.DataFrame:
    """Spearman's correlation of each metric with excess NLL over turns after an eviction.

    One row per model, data set and metric, the strongest first; metrics that do not vary are left
    out. Turns of all policies and position modes count alike. `gap_to_best` is by how much the
    strongest metric's correlation is stronger, whatever its sign, with the interval of that
    difference over the same resamples of dialogues.
    """
    has_excess = pl.col("excess_nll").is_not_null()
    columns = ("model", "dataset", "dialogue", "excess_nll", *metrics)
    chosen = turns.lazy().filter("after_eviction", "inside_window", has_excess).select(columns)
    evicted = chosen.collect()
    rows = []
    for (model, dataset), part in evicted.group_by("model", "dataset", maintain_order=True):
        found = []
        for metric in metrics:
            measured = part.filter(pl.col(metric).is_not_null())
            correlation = bootstrap_correlation(
                measured[metric].cast(pl.Float64).to_numpy(),
                measured["excess_nll"].to_numpy(),
                measured["dialogue"].to_numpy().astype(str),
                resamples=options["resamples"],
                seed=options["seed"],
            )
            if correlation is not None:
                found.append(({"model": model, "dataset": dataset, "metric": metric}, correlation))
        best = max(
            (correlation for _, correlation in found),
            key=lambda correlation: abs(correlation.value),
            default=None,
        )
        for identity, correlation in found:
            row = identity | correlation.summary(options["confidence"])
            rows.append(row | _gap_to_best(best, correlation, options["confidence"]))
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


def _gap_to_best(
    best: Correlation | None, one: Correlation, confidence: float
) -> dict[str, float | None]:
    if best is None or best is one:
        return dict.fromkeys(("gap_to_best", "gap_to_best_low", "gap_to_best_high"))
    low = high = None
    # Metrics that are missing in some dialogues were not drawn alike.
    if best.n_dialogues == one.n_dialogues:
        gaps = np.abs(best.resampled) - np.abs(one.resampled)
        low, high = percentile_interval(gaps, one.n_dialogues, confidence)
    return {
        "gap_to_best": abs(best.value) - abs(one.value),
        "gap_to_best_low": low,
        "gap_to_best_high": high,
    }


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
