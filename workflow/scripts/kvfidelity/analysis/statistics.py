"""Estimates that take into account which turns belong to one dialogue."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
#: Differences whose signs can all be tried.
ENUMERABLE = 13


@dataclass(frozen=True)
class Estimate:
    """A weighted mean with its interval; None where too few dialogues allow none.

    p: two-sided Wilcoxon signed-rank over the dialogues' means, against 0. effect: matched-pairs
    rank-biserial correlation of the same, in [-1, 1].
    """

    mean: float
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
        values, weights, dialogues: one entry per turn.
    """
    names, groups = np.unique(dialogues, return_inverse=True)
    sums = np.bincount(groups, values * weights)
    totals = np.bincount(groups, weights)
    mean = float(sums.sum() / totals.sum())
    low = high = None
    if len(names) > 1:
        drawn = stats.bootstrap(
            (sums, totals),
            _ratio,
            paired=True,
            vectorized=True,
            confidence_level=expanded(confidence, len(names)),
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = map(float, drawn.confidence_interval)
    p, effect = signed_rank(sums / totals)
    return Estimate(mean, low, high, len(names), len(values), p, effect)


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
    if found.low is None or found.high is None or found.high - found.low > 1e-9:
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


def expanded(confidence: float, clusters: int) -> float:
    """The percentile level that gives about `confidence` with so few clusters.

    For 0.95: 0.998 with 5 clusters, 0.968 with 20, 0.954 with 100.
    """
    edge = math.sqrt(clusters / (clusters - 1)) * stats.t.ppf((1 + confidence) / 2, clusters - 1)
    return float(1 - 2 * stats.norm.sf(edge))


def signed_rank(differences: Floats) -> tuple[float | None, float | None]:
    """Wilcoxon's two-sided p and the rank-biserial correlation; None if nothing differs."""
    moved = differences[differences != 0]
    if moved.size < 2:
        return None, None
    ranks = stats.rankdata(np.abs(moved))
    signed = ranks * np.sign(moved)
    effect = float(signed.sum() / ranks.sum())
    if moved.size <= ENUMERABLE and np.unique(ranks).size < moved.size:
        # What `wilcoxon` does with ties, a thousand times faster: ranks do not change with signs.
        exact = stats.permutation_test(
            (signed,),
            lambda drawn, axis: drawn.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=2**ENUMERABLE,
        )
        return float(exact.pvalue), effect
    return float(stats.wilcoxon(moved).pvalue), effect


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the comparisons of one table; None stays None."""
    known = [(p, place) for place, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


def _ratio(sums: Floats, totals: Floats, axis: int = -1) -> Floats:
    ratio: Floats = sums.sum(axis=axis) / totals.sum(axis=axis)
    return ratio
