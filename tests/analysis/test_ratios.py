"""Shares of a loss, against Fieller's closed form and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kvfidelity.analysis.ratios import clustered_ratio
from kvfidelity.analysis.statistics import clustered_mean


def names(dialogues: int) -> np.ndarray:
    return np.arange(dialogues).astype(str)


def fieller(parts: np.ndarray, wholes: np.ndarray, confidence: float) -> tuple[float, float]:
    """Roots of mean(d - r s)^2 = t^2 var(d - r s) / n."""
    n = parts.size
    t2 = stats.t.isf((1 - confidence) / 2, n - 1) ** 2 / n
    (of_part, both), (_, of_whole) = np.cov(parts, wholes)
    a = wholes.mean() ** 2 - t2 * of_whole
    b = parts.mean() * wholes.mean() - t2 * both
    c = parts.mean() ** 2 - t2 * of_part
    root = math.sqrt(b**2 - a * c)
    return (b - root) / a, (b + root) / a


def test_with_few_dialogues_the_ends_are_fiellers() -> None:
    """Below ten dialogues an interval of a mean is Student's, as Fieller has it."""
    rng = np.random.default_rng(0)
    wholes = rng.normal(3, 0.5, 9)
    parts = 0.5 * wholes + rng.normal(0.2, 0.3, 9)
    found = clustered_ratio(parts, wholes, np.ones(9), names(9))
    assert found.mean == pytest.approx(parts.mean() / wholes.mean())
    assert (found.low, found.high) == pytest.approx(fieller(parts, wholes, 0.95), rel=1e-3)
    strict = fieller(parts, wholes, 0.99)
    assert (found.strict_low, found.strict_high) == pytest.approx(strict, rel=1e-3)


def test_the_interval_holds_the_ratio_as_often_as_it_says() -> None:
    """A part of one nat plus half of the whole: the spread of the difference alone, moved to the
    ratio, holds it in 6% of samples."""
    rng = np.random.default_rng(1)
    held, samples = 0, 50
    for seed in range(samples):
        wholes = rng.lognormal(0, 0.5, 12)
        parts = 1 + 0.5 * wholes + rng.normal(0, 0.05, 12)
        found = clustered_ratio(parts, wholes, np.ones(12), names(12), resamples=200, seed=seed)
        truth = 0.5 + 1 / math.exp(0.125)
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert held / samples >= 0.86


def test_a_share_is_outside_where_the_difference_is_found() -> None:
    """What the interval shows and what a test of the margin says are the same."""
    rng = np.random.default_rng(2)
    weights = rng.lognormal(0, 0.5, 14)
    wholes = rng.lognormal(0, 0.6, 14)
    parts = wholes * rng.uniform(0.4, 1, 14)
    found = clustered_ratio(parts, wholes, weights, names(14))
    for low, high in (("low", "high"), ("strict_low", "strict_high")):
        ends = getattr(found, low), getattr(found, high)
        for end, side in zip(ends, (-1, 1), strict=True):
            for share, outside in ((end + side * 0.01, True), (end - side * 0.01, False)):
                tested = clustered_mean(parts - share * wholes, weights, names(14))
                assert (not getattr(tested, low) <= 0 <= getattr(tested, high)) == outside


def test_an_exact_share_is_its_own_interval() -> None:
    wholes = np.linspace(1, 3, 12)
    found = clustered_ratio(0.75 * wholes, wholes, np.ones(12), names(12))
    assert (found.mean, found.strict_low, found.strict_high) == pytest.approx((0.75,) * 3)


def test_nothing_is_a_share_of_what_may_be_nothing() -> None:
    """The whole is +0.003 and hardly more than its error: 17 times it is no finding."""
    rng = np.random.default_rng(3)
    wholes = 0.003 + rng.normal(0, 0.005, 12)
    parts = 0.05 + wholes
    found = clustered_ratio(parts, wholes, np.ones(12), names(12))
    assert (found.mean, found.low, found.strict_high) == (None, None, None)
    assert (found.n_dialogues, found.n_turns) == (12, 12)
