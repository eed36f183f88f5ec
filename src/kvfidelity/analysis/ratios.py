"""What share one mean is of another, over the same turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kvfidelity.analysis.statistics import (
    Estimate,
    Floats,
    Interval,
    clustered_mean,
    column_arrays,
    interval_options,
)

#: An end is found to this share of its distance from the ratio, or of the ratio.
FINE, FINEST = 1e-3, 1e-9
#: Doublings after which an interval counts as unbounded.
MOST_DOUBLINGS = 60


def clustered_ratio(
    parts: Floats,
    wholes: Floats,
    weights: Floats,
    dialogues: NDArray[np.str_],
    **options: Any,
) -> Estimate:
    """Mean of `parts` / mean of `wholes`, with Fieller's interval (1954, Journal of the Royal
    Statistical Society B 16, p. 175): the shares r at which the interval of part - r whole has 0.

    So a share lies outside it exactly where the two means are found to be in another ratio. There
    is no ratio where the mean of `wholes` is not surely above 0 (`strict_low`): nothing is a share
    of what may be nothing.

    Args:
        parts, wholes, weights, dialogues: one entry per turn; a turn counts if both are finite.
        options: of `clustered_mean`.
    """
    known = np.isfinite(parts) & np.isfinite(wholes)
    parts, wholes = parts[known], wholes[known]
    weights, dialogues = weights[known], dialogues[known]
    whole = clustered_mean(wholes, weights, dialogues, **options)
    missing = Estimate(None, None, None, None, None, whole.n_dialogues, whole.n_turns, None)
    part = clustered_mean(parts, weights, dialogues, **options)
    if whole.mean is None or part.mean is None or whole.strict_low is None or whole.strict_low <= 0:
        return missing
    ratio = part.mean / whole.mean

    # A dialogue has one number for its turns, so that they are not sorted for every share.
    _, places = np.unique(dialogues, return_inverse=True)

    @cache  # both ends are looked for at two levels, from the same shares on
    def beyond(share: float) -> Estimate:
        return clustered_mean(parts - share * wholes, weights, places, **options)

    def interval(low: str, high: str) -> Interval:
        def below(share: float) -> bool:
            end = getattr(beyond(share), low)
            return end is not None and end > 0

        def above(share: float) -> bool:
            end = getattr(beyond(share), high)
            return end is not None and end < 0

        found = _end(ratio, -1, below), _end(ratio, 1, above)
        return found if None not in found else (None, None)

    low, high = interval("low", "high")
    strict_low, strict_high = interval("strict_low", "strict_high")
    # Around the ratio, a dialogue moves it by what its part differs from its share of the whole.
    around = beyond(ratio).core
    core = tuple(None if end is None else ratio + end / whole.mean for end in around)
    return replace(
        missing,
        mean=ratio,
        low=low,
        high=high,
        strict_low=strict_low,
        strict_high=strict_high,
        sign=part.sign,
        core=(core[0], core[1]),
    )


def column_ratio(
    rows: pl.DataFrame, part: pl.Expr, whole: pl.Expr, weight: pl.Expr, options: Mapping[str, Any]
) -> Estimate:
    """`clustered_ratio` of expressions over a table's rows, with its column `dialogue`."""
    parts, weights, dialogues = column_arrays(rows, part, weight)
    wholes, _, _ = column_arrays(rows, whole, weight)
    return clustered_ratio(parts, wholes, weights, dialogues, **interval_options(options))


def _end(ratio: float, side: int, ruled_out: Any) -> float | None:
    """Where shares on one side of the ratio begin to be ruled out, by bisection; None if none of
    them is."""
    finest = FINEST * max(1.0, abs(ratio))
    inside, step = 0.0, FINE * max(1.0, abs(ratio))
    for _ in range(MOST_DOUBLINGS):
        if ruled_out(ratio + side * step):
            break
        inside, step = step, 2 * step
    else:
        return None
    while step - inside > max(FINE * step, finest):
        middle = (inside + step) / 2
        if ruled_out(ratio + side * middle):
            step = middle
        else:
            inside = middle
    return ratio + side * step
