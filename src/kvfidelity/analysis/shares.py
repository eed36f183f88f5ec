"""Shares and differences of shares, with Clopper and Pearson's interval at the sample size that the
dialogues are worth (Korn and Graubard 1998, Survey Methodology 24, p. 193)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from kvfidelity.analysis.statistics import (
    NOTHING,
    ROUNDING,
    Estimate,
    Floats,
    Interval,
    by_dialogue,
    column_arrays,
    interval_options,
    means_without_each,
    strict_confidence,
)


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
    """Weighted mean of values from 0 to 1 or, `paired`, of differences of such, from -1 to 1.

    The interval of a difference joins those of what is won and of what is lost (MOVER: Zou and
    Donner 2008, Statistics in Medicine 27, p. 1693), with their covariance over dialogues. Unlike
    `clustered_mean` it exists where all dialogues are alike: ten dialogues in which nothing is lost
    do not rule out that 30% is lost on average.

    Args:
        resamples, seed: not used; here so that both kinds of mean are called alike.
    """
    del resamples, seed
    if not paired:
        share = _Share(values, weights, dialogues)
        if not share.turns:
            return NOTHING
        ends = [share.interval(level) for level in (confidence, strict_confidence(confidence))]
        return Estimate(share.share, *ends[0], *ends[1], share.clusters, share.turns, None)
    won = _Share(np.maximum(values, 0), weights, dialogues)
    lost = _Share(np.maximum(-values, 0), weights, dialogues)
    if not won.turns:
        return NOTHING
    both = won.error * lost.error
    together = float((won.influence * lost.influence).sum()) / both if both > 0 else 0.0
    ends = []
    for level in (confidence, strict_confidence(confidence)):
        (won_low, won_high), (lost_low, lost_high) = won.interval(level), lost.interval(level)
        if won_low is None or won_high is None or lost_low is None or lost_high is None:
            ends.append((None, None))
            continue
        difference = won.share - lost.share
        below = _joined(won.share - won_low, lost_high - lost.share, together)
        above = _joined(won_high - won.share, lost.share - lost_low, together)
        ends.append((max(-1.0, difference - below), min(1.0, difference + above)))
    mean = won.share - lost.share
    return Estimate(mean, *ends[0], *ends[1], won.clusters, won.turns, None)


def column_share(
    rows: pl.DataFrame, value: pl.Expr, options: Mapping[str, Any], *, paired: bool = False
) -> Estimate:
    """`clustered_share` of an expression over a table's rows, which count alike."""
    arrays = column_arrays(rows, value, pl.lit(1))
    return clustered_share(*arrays, paired=paired, **interval_options(options))


def share_interval(
    share: float, error: float, clusters: int, values: int, confidence: float
) -> Interval:
    """Clopper and Pearson's interval of a share whose standard error over dialogues is known.

    The sample size is the one that would give this error, reduced as Student's t is wider than the
    normal with so few dialogues, and at most the number of values. Where the share is 0 or 1 how
    alike the values of a dialogue are cannot be seen, and each dialogue counts as one value.
    """
    if clusters < 2:
        return None, None
    tail = (1 - confidence) / 2
    if share <= ROUNDING or share >= 1 - ROUNDING:
        share, n = float(round(share)), float(clusters)
    else:
        wider = special.ndtri(tail) / special.stdtrit(clusters - 1, tail)
        spread = share * (1 - share)
        size = spread / error**2 if error > ROUNDING else math.inf
        n = min(size, values) * wider**2
    right = share * n
    low = float(special.betaincinv(right, n - right + 1, tail)) if right > 0 else 0.0
    high = float(special.betainccinv(right + 1, n - right, tail)) if right < n else 1.0
    return low, high


class _Share:
    """A share, how many dialogues and values it is over, and its error over dialogues."""

    def __init__(self, values: Floats, weights: Floats, dialogues: NDArray[np.str_]) -> None:
        sums, totals, self.turns = by_dialogue(values, weights, dialogues)
        self.clusters = len(sums)
        self.share = float(np.clip(sums.sum() / totals.sum(), 0, 1)) if self.turns else 0.0
        self.influence = np.zeros(self.clusters)
        if self.clusters > 1:
            scale = math.sqrt((self.clusters - 1) / self.clusters)
            self.influence = scale * (means_without_each(sums, totals) - self.share)
        self.error = float(np.sqrt((self.influence**2).sum()))

    def interval(self, confidence: float) -> Interval:
        return share_interval(self.share, self.error, self.clusters, self.turns, confidence)


def _joined(own: float, other: float, correlation: float) -> float:
    """How far an end of a difference lies from it, given the ends of its two parts."""
    return math.sqrt(max(0.0, own**2 + other**2 - 2 * correlation * own * other))
