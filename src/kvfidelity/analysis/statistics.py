"""Estimates and intervals. Turns of one dialogue are not independent: dialogues are resampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
#: What an interval depends on, of `report` in the configuration.
INTERVAL_OPTIONS = ("confidence", "resamples", "seed")
#: Differences whose signs can all be tried.
MAX_ENUMERATED = 13
#: Share of resamples that must define a statistic, or its interval is missing. A column that varies
#: in one dialogue of many alone is constant in 37% of them, one that varies in two in 14%.
DEFINED = 0.9


@dataclass(frozen=True)
class Estimate:
    """A weighted mean with its interval. What is not defined is None and never NaN: the mean of
    nothing, an interval of one dialogue.

    p: two-sided Wilcoxon signed-rank over the dialogues' means, against 0. effect: matched-pairs
    rank-biserial correlation of the same, in [-1, 1].
    """

    mean: float | None
    low: float | None
    high: float | None
    n_dialogues: int
    n_turns: int
    p: float | None
    effect: float | None


def clustered_mean(
    values: Floats,
    weights: Floats,
    dialogues: NDArray[np.str_],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Weighted mean over turns, with a percentile bootstrap that resamples whole dialogues.

    Turns of one dialogue are not independent, so the dialogue is what is drawn. Below two dialogues
    there is no interval. With few, percentiles lie too close together: the levels are widened as
    Student's t is against the normal (Hesterberg 2015, arXiv 1411.5279, section 5.3).

    Args:
        values, weights, dialogues: one entry per turn. Turns whose value is not finite or whose
            weight is not above 0 say nothing: they are left out and not counted.
    """
    known = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    values, weights, dialogues = values[known], weights[known], dialogues[known]
    if not values.size:
        return Estimate(None, None, None, 0, 0, None, None)
    names, groups = np.unique(dialogues, return_inverse=True)
    # Finite numbers can still be too large for their sum.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.bincount(groups, values * weights)
        totals = np.bincount(groups, weights)
        mean = finite(sums.sum() / totals.sum())
        low = high = None
        if mean is not None and len(names) > 1:
            bootstrap = stats.bootstrap(
                (sums, totals),
                _ratio,
                paired=True,
                vectorized=True,
                confidence_level=widened_confidence(confidence, len(names)),
                n_resamples=resamples,
                method="percentile",
                rng=np.random.default_rng(seed),
            )
            low, high = map(finite, bootstrap.confidence_interval)
            if low is None or high is None:
                low = high = None
        p, effect = signed_rank(sums / totals)
    return Estimate(mean, low, high, len(names), len(values), p, effect)


def column_mean(
    rows: pl.DataFrame, value: pl.Expr, weight: pl.Expr, options: Mapping[str, Any]
) -> Estimate:
    """`clustered_mean` of expressions over a table's rows, with its column `dialogue`.

    Args:
        options: confidence, resamples and seed, among others.
    """
    chosen = rows.select(
        value=value.cast(pl.Float64), weight=weight.cast(pl.Float64), dialogue=pl.col("dialogue")
    )
    return clustered_mean(
        chosen["value"].to_numpy(),
        chosen["weight"].to_numpy(),
        chosen["dialogue"].to_numpy().astype(str),
        **{name: options[name] for name in INTERVAL_OPTIONS},
    )


def t_intervals(
    rows: pl.DataFrame, keys: Sequence[str], value: str, confidence: float = 0.95
) -> pl.DataFrame:
    """Mean of a column per group with Student's t-interval over the group's rows.

    Returns:
        The keys, `mean`, `low`, `high`, `n`: values that are there. A group without a value is left
        out; with one value the interval is missing.
    """
    groups = rows.group_by(keys).agg(
        mean=pl.col(value).mean(), spread=pl.col(value).std(), n=pl.col(value).count()
    )
    groups = groups.filter(pl.col("n") > 0)
    n = groups["n"].to_numpy().astype(float)
    edge = stats.t.ppf((1 + confidence) / 2, np.maximum(n - 1, 1)) / np.sqrt(n)
    half = pl.Series(edge) * groups["spread"]
    return groups.select(
        *keys, "mean", low=pl.col("mean") - half, high=pl.col("mean") + half, n="n"
    )


def dialogue_draws(dialogues: int, resamples: int, seed: int) -> Floats:
    """How often each dialogue is drawn in each resample: [resamples, dialogues]."""
    share = np.full(dialogues, 1 / dialogues)
    rng = np.random.default_rng(seed)
    return rng.multinomial(dialogues, share, size=resamples).astype(np.float64)


def clustered_share(
    values: Floats,
    weights: Floats,
    dialogues: NDArray[np.str_],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    paired: bool = False,
) -> Estimate:
    """`clustered_mean` of values that are 0 or 1, or, `paired`, differences of such.

    Where all dialogues have the same share, as when every answer is right, resamples cannot differ,
    and how alike a dialogue's answers are cannot be seen. The interval is then Clopper and
    Pearson's over all values (as in Korn and Graubard 1998, Survey Methodology 24, p. 193); that of
    a difference of 0 reaches as far to both sides as that of a share of 0 to one.
    """
    found = clustered_mean(
        values, weights, dialogues, confidence=confidence, resamples=resamples, seed=seed
    )
    if found.mean is None or found.low is None or found.high is None:
        return found
    if found.high - found.low > 1e-9:
        return found
    n, share = found.n_turns, abs(found.mean)
    tail, right = (1 - confidence) / 2, share * n
    low = float(stats.beta.ppf(tail, right, n - right + 1)) if right > 0 else 0.0
    high = float(stats.beta.isf(tail, right + 1, n - right)) if right < n else 1.0
    if found.mean < 0:
        low, high = -high, -low
    elif paired and right == 0:
        low = -high
    return replace(found, low=low, high=high)


def weighted_mean(values: Floats, weights: Floats) -> float | None:
    """The mean of what is finite and has a weight above 0; None if nothing is."""
    known = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    if not known.any():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        return finite(np.average(values[known], weights=weights[known]))


def percentile_interval(
    drawn: Floats, clusters: int, confidence: float
) -> tuple[float | None, float | None]:
    """The percentile interval of a statistic over resamples of dialogues; (None, None) if there is
    none.

    In some resamples a statistic may be undefined, as a correlation is where a column does not
    vary. They are left out. If they are more than a tenth, the others do not stand for all, and
    the interval is missing, as it is with one dialogue.

    Args:
        drawn: one value per resample, not finite where it is undefined.
        clusters: the dialogues that were resampled.
    """
    defined = drawn[np.isfinite(drawn)]
    if clusters < 2 or defined.size < max(1, DEFINED * drawn.size):
        return None, None
    tail = (1 - widened_confidence(confidence, clusters)) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def widened_confidence(confidence: float, clusters: int) -> float:
    """The percentile level that gives about `confidence` with so few clusters.

    For 0.95: 0.998 with 5 clusters, 0.968 with 20, 0.954 with 100.
    """
    edge = math.sqrt(clusters / (clusters - 1)) * stats.t.ppf((1 + confidence) / 2, clusters - 1)
    return float(1 - 2 * stats.norm.sf(edge))


def signed_rank(differences: Floats) -> tuple[float | None, float | None]:
    """Wilcoxon's two-sided p and the rank-biserial correlation; None if nothing differs."""
    nonzero = differences[np.isfinite(differences) & (differences != 0)]
    if nonzero.size < 2:
        return None, None
    ranks = stats.rankdata(np.abs(nonzero))
    signed = ranks * np.sign(nonzero)
    effect = float(signed.sum() / ranks.sum())
    if nonzero.size <= MAX_ENUMERATED and np.unique(ranks).size < nonzero.size:
        # What `wilcoxon` does with ties, a thousand times faster: ranks do not change with signs.
        exact = stats.permutation_test(
            (signed,),
            lambda drawn, axis: drawn.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=2**MAX_ENUMERATED,
        )
        return finite(exact.pvalue), effect
    return finite(stats.wilcoxon(nonzero).pvalue), effect


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the comparisons of one table; what is missing or not finite
    is None and no comparison."""
    known = [(p, index) for index, p in enumerate(p_values) if p is not None and math.isfinite(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted


def _ratio(sums: Floats, totals: Floats, axis: int = -1) -> Floats:
    ratio: Floats = sums.sum(axis=axis) / totals.sum(axis=axis)
    return ratio
