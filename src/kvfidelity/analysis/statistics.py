"""Estimates and their intervals. Turns of one dialogue are not independent: a dialogue is one
observation, and an interval comes from how much the dialogues differ.

Means have the cluster jackknife's t-interval (CV3: MacKinnon, Nielsen and Webb 2023, Journal of
Applied Econometrics 38, p. 671), joined with the studentised bootstrap's from 10 dialogues on
(Hesterberg 2015, arXiv 1411.5279): losses are skewed, and a t-interval alone too often ends below
their mean.
`benchmarks/intervals.py` measures how often they are wrong; docs/metrics.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special  # scipy.stats has the same functions, and takes a second to import

Floats = NDArray[np.float64]
#: What an interval depends on, of `report` in the configuration.
INTERVAL_OPTIONS = ("confidence", "resamples", "seed")
#: Fewer dialogues decide nothing and have no p.
MIN_DIALOGUES = 10
#: Fewer dialogues cannot show that a quantity is small: rare large values are easily missed.
MIN_DIALOGUES_WITHIN = 20
#: Dialogues that decide although all have the same value: if one dialogue in twenty had another,
#: that many would all miss it in less than 5% of samples.
MIN_DIALOGUES_ALIKE = 59
#: Skewness of dialogues, in its standard errors, from which a test against 0 is stricter on the
#: side of the long tail, and by how much more rarely the mean may lie beyond that end.
SKEWED, RARER = 0.6, 20
#: Share of the dialogues, and how near they are to each other as a share of their distance from a
#: margin, for (nearly) all of them to be alike.
MOST, NEAR = 0.75, 0.05
#: What differs by less than this share of its size is equal, but for rounding.
ROUNDING = 1e-9
#: Elements of an array that resampling works on: two of them fit in a processor's cache.
CHUNK = 1 << 16

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Estimate:
    """A weighted mean with its interval. What is not defined is None and never NaN: the mean of
    nothing, an interval of one dialogue or of dialogues that (nearly) all have the same value.

    low, high: the interval at the confidence that was asked for, or wider on the side of a long
    tail. strict_low, strict_high: at `strict_confidence` of it, which conclusions beyond a margin
    need. p: two-sided, of the mean being 0. None for shares, below MIN_DIALOGUES, and where few
    dialogues are `nearly_alike`. sign: 1 or -1 where the mean is found above or below 0, 0 where it
    is not: p is below 1 - confidence, up to the resamples' resolution. None for shares and below
    MIN_DIALOGUES. largest: the largest absolute mean of a dialogue. core: the smallest range that
    holds MOST of the dialogues' means. Both are None for shares.
    """

    mean: float | None
    low: float | None
    high: float | None
    strict_low: float | None
    strict_high: float | None
    n_dialogues: int
    n_turns: int
    p: float | None
    sign: int | None = None
    largest: float | None = None
    core: Interval = (None, None)


NOTHING = Estimate(None, None, None, None, None, 0, 0, None)


def strict_confidence(confidence: float) -> float:
    """The level at which a conclusion beyond a margin is drawn: 0.99 for 0.95.

    With skewed losses an interval of 95% misses above the mean in up to 10% of samples, one of 99%
    in less than 5% (benchmarks/intervals.py).
    """
    return 1 - (1 - confidence) / 5


def clustered_mean(
    values: Floats,
    weights: Floats,
    dialogues: NDArray[Any],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Weighted mean over turns with an interval over dialogues.

    Each end is the outer one of the jackknife's and the studentised bootstrap's. Below
    MIN_DIALOGUES the bootstrap says little, and the jackknife stands alone. There is no interval
    where all dialogues have the same mean, or so many that the bootstrap has no bound: how far rare
    other values would move the mean cannot be seen.

    `sign` and p are of an interval whose end towards which the dialogues are skewed is that of a
    higher level (SKEWED, RARER): a sample seldom has the large values of a long tail, and its mean
    and its spread are then both too small, so that a mean of 0 would be found below it in 10% of
    samples. From MIN_DIALOGUES_WITHIN on this is the interval that is shown.

    Args:
        values, weights, dialogues: one entry per turn. Turns whose value is not finite or whose
            weight is not above 0 say nothing: they are left out and not counted.
    """
    sums, totals, turns = by_dialogue(values, weights, dialogues)
    if not turns:
        return NOTHING
    # Finite numbers can still be too large for their sum.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean = finite(sums.sum() / totals.sum())
        largest = finite(np.abs(sums / totals).max())
        without = Estimate(mean, None, None, None, None, len(sums), turns, None)
        without = replace(without, largest=largest, core=_core(sums / totals))
        if mean is None or len(sums) < 2:
            return without
        if _all_alike(sums / totals):
            end = mean if len(sums) >= MIN_DIALOGUES_ALIKE else None
            return replace(without, low=end, high=end, strict_low=end, strict_high=end)
        error = jackknife_error(mean, means_without_each(sums, totals))
        if error is None:
            return without
        level, strict_level = confidence, strict_confidence(confidence)
        if len(sums) < MIN_DIALOGUES:
            shown, strict = (
                t_interval(mean, error, len(sums), one) for one in (level, strict_level)
            )
            return _with_ends(without, shown, strict)
        studentised = _studentised(sums, totals, mean, error, resamples, seed)
        shown, strict, wider = (
            _mean_interval(mean, error, len(sums), studentised, one)
            for one in (level, strict_level, 1 - (1 - level) / RARER)
        )
        tail = _long_tail(sums / totals)
        tested = _reaching(shown, wider, tail)
        if len(sums) >= MIN_DIALOGUES_WITHIN:
            shown, strict = tested, _reaching(strict, wider, tail)
        rarer = RARER if tail * mean < 0 else 1
        p = _p_value(mean / error, len(sums), studentised, rarer)
    if nearly_alike(len(sums), without.core, 0):
        p = None
    return replace(_with_ends(without, shown, strict), p=p, sign=_sign(*tested))


def nearly_alike(dialogues: int, core: Interval, margin: float) -> bool:
    """Whether nearly all of few dialogues lie so close together that they cannot show on which side
    of a margin the mean is.

    If one dialogue in five is far on the other side, ten dialogues hold none of these in 11% of
    samples. Where the others are alike, their spread says that such a mean is certain.
    """
    low, high = core
    if dialogues >= MIN_DIALOGUES_WITHIN or low is None or high is None:
        return False
    return high - low < NEAR * max(low - margin, margin - high)


def column_mean(
    rows: pl.DataFrame, value: pl.Expr, weight: pl.Expr, options: Mapping[str, Any]
) -> Estimate:
    """`clustered_mean` of expressions over a table's rows, with its column `dialogue`.

    Args:
        options: confidence, resamples and seed, among others.
    """
    return clustered_mean(*column_arrays(rows, value, weight), **interval_options(options))


def jackknife_error(value: float, left_out: Floats) -> float | None:
    """Standard error of a statistic from its values without one dialogue each (CV3); None if one of
    these is not defined."""
    clusters = left_out.size
    if not np.isfinite(left_out).all():
        return None
    return finite(math.sqrt((clusters - 1) / clusters * float(((left_out - value) ** 2).sum())))


def t_interval(value: float, error: float, clusters: int, confidence: float) -> Interval:
    """Student's, with one degree of freedom less than there are dialogues."""
    half = -float(special.stdtrit(clusters - 1, (1 - confidence) / 2)) * error
    low, high = finite(value - half), finite(value + half)
    return (low, high) if low is not None and high is not None else (None, None)


def t_intervals(
    rows: pl.DataFrame, keys: Sequence[str], value: str, confidence: float = 0.95
) -> pl.DataFrame:
    """Mean of a column per group with Student's t-interval over the group's rows.

    Returns:
        The keys, `mean`, `low`, `high`, `n`: values that are there. A group without a value is left
        out; with one value the interval is missing.
    """
    groups = rows.group_by(keys, maintain_order=True).agg(
        mean=pl.col(value).mean(), spread=pl.col(value).std(), n=pl.col(value).count()
    )
    groups = groups.filter(pl.col("n") > 0)
    n = groups["n"].to_numpy().astype(float)
    edge = special.stdtrit(np.maximum(n - 1, 1), (1 + confidence) / 2) / np.sqrt(n)
    half = pl.Series(edge) * groups["spread"]
    return groups.select(
        *keys, "mean", low=pl.col("mean") - half, high=pl.col("mean") + half, n="n"
    )


def weighted_mean(values: Floats, weights: Floats) -> float | None:
    """The mean of what is finite and has a weight above 0; None if nothing is."""
    known = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    if not known.any():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        return finite(np.average(values[known], weights=weights[known]))


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the comparisons of one family; what is missing or not finite
    is None and no comparison."""
    known = [(p, index) for index, p in enumerate(p_values) if p is not None and math.isfinite(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted


def by_dialogue(
    values: Floats, weights: Floats, dialogues: NDArray[Any]
) -> tuple[Floats, Floats, int]:
    """Per dialogue the sum of weighted values and of weights, and how many values count."""
    known = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    values, weights = values[known], weights[known]
    _, groups = np.unique(dialogues[known], return_inverse=True)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.bincount(groups, values * weights).astype(np.float64)
    return sums, np.bincount(groups, weights).astype(np.float64), len(values)


def means_without_each(sums: Floats, totals: Floats) -> Floats:
    """The mean without each dialogue in turn."""
    left: Floats = (sums.sum() - sums) / (totals.sum() - totals)
    return left


def _all_alike(means: Floats) -> bool:
    return bool(np.ptp(means) <= ROUNDING * np.abs(means).max())


def _core(means: Floats) -> Interval:
    """The smallest range that holds MOST of the means."""
    ordered = np.sort(means)
    held = math.ceil(MOST * means.size)
    widths = ordered[held - 1 :] - ordered[: means.size - held + 1]
    first = int(np.argmin(widths))
    return finite(ordered[first]), finite(ordered[first + held - 1])


def _long_tail(means: Floats) -> int:
    """-1 or 1 where the dialogues have their long tail, below or above the mean; 0 without one.

    They count alike, whatever their weight: a long dialogue is no tail.
    """
    away = means - means.mean()
    away = away / np.abs(away).max()  # so that no cube overflows
    skewness = (away**3).mean() / (away**2).mean() ** 1.5
    clear = SKEWED * math.sqrt(6 / means.size)
    return int(skewness > clear) - int(skewness < -clear)


def _reaching(ends: Interval, wider: Interval, tail: int) -> Interval:
    """The interval with the end of a wider one on the side of the tail, bounded or not."""
    return wider[0] if tail < 0 else ends[0], wider[1] if tail > 0 else ends[1]


def _with_ends(found: Estimate, shown: Interval, strict: Interval) -> Estimate:
    """The estimate with both intervals, each with none of its ends if one is unbounded."""
    low, high = (None, None) if None in shown else shown
    strict_low, strict_high = (None, None) if None in strict else strict
    return replace(found, low=low, high=high, strict_low=strict_low, strict_high=strict_high)


def _sign(low: float | None, high: float | None) -> int:
    """On which side of 0 an interval is; 0 if 0 is in it."""
    return int(low is not None and low > 0) - int(high is not None and high < 0)


def _mean_interval(
    mean: float, error: float, clusters: int, studentised: Floats, confidence: float
) -> Interval:
    """The outer ends of both intervals; None for an end that is unbounded."""
    low, high = t_interval(mean, error, clusters, confidence)
    if low is None or high is None:
        return low, high
    tail = (1 - confidence) / 2
    # Interpolation between an infinite value and a finite one is not defined.
    below, above = np.quantile(studentised, [tail, 1 - tail], method="nearest")
    # np.minimum passes on what is not a number, min does not.
    return (
        finite(np.minimum(low, mean - above * error)),
        finite(np.maximum(high, mean - below * error)),
    )


def _studentised(
    sums: Floats, totals: Floats, mean: float, error: float, resamples: int, seed: int
) -> Floats:
    """(resampled mean - mean) / its own jackknife error, in each resample of dialogues.

    Infinite where the drawn dialogues are alike but differ from the mean: their spread says that
    they are certain, and they are wrong.
    """
    clusters = len(sums)
    counts = _draws(clusters, resamples, seed)
    all_sums, all_totals = counts @ sums, _drawn_totals(totals.tobytes(), resamples, seed)
    all_means = all_sums / all_totals
    squares = np.empty(resamples)
    rows = max(1, CHUNK // clusters)
    rooms = np.empty((2, min(rows, resamples), clusters))
    for start in range(0, resamples, rows):
        part = slice(start, start + rows)
        drawn, means = counts[part], all_means[part]
        # In place: most of the time would be that of getting memory.
        left, weights = rooms[:, : len(means)]
        np.subtract(all_sums[part, None], sums, out=left)
        np.subtract(all_totals[part, None], totals, out=weights)
        left /= weights
        left -= means[:, None]
        left *= left
        left *= drawn
        found = left.sum(axis=1)
        # A dialogue that was not drawn counts for nothing, also where 0 times it is not defined.
        odd = ~np.isfinite(found)
        found[odd] = np.where(drawn[odd] > 0, left[odd], 0.0).sum(axis=1)
        squares[part] = found
    # Not defined where one dialogue is all that was drawn.
    errors = np.nan_to_num(np.sqrt((clusters - 1) / clusters * squares), nan=0.0)
    errors[errors <= ROUNDING * error] = 0.0
    away = all_means - mean
    studentised: Floats = np.where(np.abs(away) <= ROUNDING * error, 0.0, away / errors)
    return studentised


@lru_cache(maxsize=4)
def _draws(clusters: int, resamples: int, seed: int) -> Floats:
    """How often each dialogue is drawn in each resample: [resamples, clusters]."""
    rng = np.random.default_rng(seed)
    share = np.full(clusters, 1 / clusters)
    counts: Floats = rng.multinomial(clusters, share, size=resamples).astype(np.float64)
    counts.setflags(write=False)
    return counts


@lru_cache(maxsize=4)
def _drawn_totals(totals: bytes, resamples: int, seed: int) -> Floats:
    """The weights drawn in each resample: a ratio's ends are found with the same ones."""
    weights = np.frombuffer(totals)
    drawn: Floats = _draws(len(weights), resamples, seed) @ weights
    return drawn


def _p_value(statistic: float, clusters: int, studentised: Floats, rarer: int) -> float | None:
    """The larger of the two p that go with the two intervals of a mean.

    Args:
        rarer: by how much more rarely the mean may lie beyond the end of the interval at 0. Where
            no resample lies beyond it, the bootstrap says only that p is below its resolution,
            which no factor makes larger.
    """
    student = 2 * float(special.stdtr(clusters - 1, -abs(statistic))) * rarer
    beyond = min(
        np.count_nonzero(studentised >= statistic), np.count_nonzero(studentised <= statistic)
    )
    resampled = 2 * (1 + beyond) / (1 + studentised.size) * (rarer if beyond else 1)
    return finite(min(1.0, max(student, resampled)))


def column_arrays(rows: pl.DataFrame, value: pl.Expr, weight: pl.Expr) -> tuple[Any, Any, Any]:
    """Values, weights and dialogues of a table's rows, for `clustered_mean`."""
    chosen = rows.select(
        value=value.cast(pl.Float64), weight=weight.cast(pl.Float64), dialogue=pl.col("dialogue")
    )
    arrays = (chosen["value"].to_numpy(), chosen["weight"].to_numpy())
    return *arrays, chosen["dialogue"].to_numpy().astype(str)


def interval_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the report's options those that an interval depends on."""
    return {name: options[name] for name in INTERVAL_OPTIONS}
