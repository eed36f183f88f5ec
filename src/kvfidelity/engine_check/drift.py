"""Drift: deviations that grow from eviction to eviction, as of keys that are rotated in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvfidelity.engine_check.probes import Probe

#: Fewest evictions between the scored tokens of a probe that can show it.
LEAST_EVICTIONS = 8
#: Standard errors of the slope, and times the deviation without an eviction that the last third
#: reaches, beyond which it is named.
ERRORS, TIMES = 3.5, 1.5
#: Least deviation that counts, in nats.
LEAST = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """probe: the one with most evictions. evictions: how many. early, late: mean absolute deviation
    over the first and the last third of them, in nats. grows: whether that is more than chance."""

    probe: str
    evictions: int
    early: float
    late: float
    grows: bool


def find_drift(
    deviations: Mapping[str, Floats],
    probes: Sequence[Probe],
    no_eviction: Mapping[str, Floats],
) -> Drift | None:
    """How deviations change over the evictions of the probe that has most.

    Args:
        deviations: signed, by probe, from the bookkeeping that fits best.
        no_eviction: by conversation, deviations of the same tokens without an eviction.

    Returns:
        None if no probe has enough evictions, or its conversation is not answered without one.
    """
    repeated = [
        probe
        for probe in probes
        if len(np.unique(probe.last_eviction)) >= LEAST_EVICTIONS
        and probe.name in deviations
        and len(no_eviction.get(probe.conversation, ())) >= probe.count
    ]
    if not repeated:
        return None
    probe = max(repeated, key=lambda each: len(each.evictions))
    values = np.abs(deviations[probe.name])
    own = no_eviction[probe.conversation][: len(values)]
    third = len(values) // 3
    return Drift(
        probe=probe.name,
        evictions=len(probe.evictions),
        early=float(values[:third].mean()),
        late=float(values[-third:].mean()),
        grows=_grows(values, np.abs(own), probe.last_eviction),
    )


def _grows(values: Floats, own: Floats, evictions: NDArray[np.int64]) -> bool:
    """Whether deviations grow with the number of evictions, compared with the same tokens without
    one: some tokens deviate more than others at any precision."""
    floor = max(float(own.mean()), LEAST)
    excess = np.log(values + floor) - np.log(own + floor)
    slope, error = _regression(evictions.astype(np.float64), excess)
    late = values[-(len(values) // 3) :].mean()
    return bool(slope > ERRORS * error and late > TIMES * floor)


def _regression(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of y over x, and its standard error."""
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    return slope, math.sqrt(float((rest * rest).sum()) / (len(x) - 2) / float((x * x).sum()))
