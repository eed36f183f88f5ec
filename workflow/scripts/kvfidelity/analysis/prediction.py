"""Which measure of positions foretells the loss: rank correlations with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from kvfidelity.analysis.statistics import Floats, expanded

SCHEMA = {
    "model": pl.String,
    "dataset": pl.String,
    "metric": pl.String,
    "correlation": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n_dialogues": pl.Int64,
    "n_turns": pl.Int64,
}


def predictors(
    turns: pl.DataFrame, metrics: tuple[str, ...], options: Mapping[str, Any]
) -> pl.DataFrame:
    """Spearman's correlation of each metric with excess NLL over turns after an eviction.

    One row per model, data set and metric, the strongest first; metrics that do not vary are left
    out. Turns of all policies and position modes count alike.
    """
    measured = pl.col("excess_nll").is_not_null()
    columns = ("model", "dataset", "dialogue", "excess_nll", *metrics)
    chosen = turns.lazy().filter("after_eviction", "inside_window", measured).select(columns)
    late = chosen.collect()
    rows = []
    for (model, dataset), part in late.group_by("model", "dataset", maintain_order=True):
        for metric in metrics:
            known = part.filter(pl.col(metric).is_not_null())
            found = rank_correlation(
                known[metric].cast(pl.Float64).to_numpy(),
                known["excess_nll"].to_numpy(),
                known["dialogue"].to_numpy().astype(str),
                **options,
            )
            if found is not None:
                about = {"model": model, "dataset": dataset, "metric": metric}
                rows.append(about | found | {"n_turns": known.height})
    order = [pl.col("model"), pl.col("dataset"), -pl.col("correlation").abs()]
    return pl.DataFrame(rows, SCHEMA).sort(order)


def rank_correlation(
    one: Floats,
    other: Floats,
    dialogues: NDArray[np.str_],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, float | int | None] | None:
    """Spearman's correlation with an interval that resamples dialogues; None if one is constant.

    Ranks are taken once, over all turns, and not again in each resample: a dialogue then counts by
    six sums, and a million turns cost no more than their ranking.
    """
    if one.size < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    x, y = stats.rankdata(one), stats.rankdata(other)
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    names, groups = np.unique(dialogues, return_inverse=True)
    kinds = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(groups, kind) for kind in kinds])
    low = high = None
    if len(names) > 1:
        rng = np.random.default_rng(seed)
        share = np.full(len(names), 1 / len(names))
        counts = rng.multinomial(len(names), share, size=resamples).astype(np.float64)
        drawn = _pearson(sums @ counts.T)
        tail = (1 - expanded(confidence, len(names))) / 2
        low, high = map(float, np.nanquantile(drawn, [tail, 1 - tail]))
    value = float(_pearson(sums.sum(axis=1)))
    return {"correlation": value, "low": low, "high": high, "n_dialogues": len(names)}


def _pearson(sums: Floats) -> Floats:
    """From the six sums along the first axis."""
    n, x, y, xx, yy, xy = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    return value
