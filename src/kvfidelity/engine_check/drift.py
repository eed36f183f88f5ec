"""Drift: deviations that grow from eviction to eviction, as of keys that are rotated in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvfidelity.engine_check.probes import Probe

#: Fewest evictions in a probe that can show it.
LEAST_EVICTIONS = 8
#: Standard errors, and times the deviation without an eviction, beyond which it is named.
BEYOND, TIMES = 4.0, 2.0


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
    deviations: Mapping[str, NDArray[np.float64]],
    probes: Sequence[Probe],
    no_eviction: Mapping[str, NDArray[np.float64]],
) -> Drift | None:
    """Compare the last third of the evictions with the first, in the probe that has most.

    Args:
        deviations: signed, by probe, from the bookkeeping that fits best.
        no_eviction: by conversation, deviations of the same tokens without an eviction.

    Returns:
        None if no probe has enough evictions.
    """
    repeated = [
        probe
        for probe in probes
        if len(probe.evictions) >= LEAST_EVICTIONS and probe.name in deviations
    ]
    if not repeated:
        return None
    probe = max(repeated, key=lambda each: len(each.evictions))
    values = np.abs(deviations[probe.name])
    own = no_eviction.get(probe.conversation)
    # Some tokens deviate more than others under any precision: compare with the same tokens.
    excess = values - np.abs(own[: len(values)]) if own is not None else values
    third = len(values) // 3
    early, late = excess[:third], excess[-third:]
    error = math.sqrt(early.var(ddof=1) / third + late.var(ddof=1) / third)
    scale = float(np.abs(own).mean()) if own is not None else float(values[:third].mean())
    grown = float(late.mean() - early.mean())
    return Drift(
        probe=probe.name,
        evictions=len(probe.evictions),
        early=float(values[:third].mean()),
        late=float(values[-third:].mean()),
        grows=bool(error > 0 and grown > BEYOND * error and grown > TIMES * scale),
    )
