"""Which bookkeeping an engine implements, told by its answers alone.

Every known bookkeeping is a hypothesis with expected answers. The engine's deviation where nothing
is evicted is the yardstick: by as much it may deviate after an eviction. What tells hypotheses
apart is what the eviction changes, token by token: the engine's answer minus its answer to the same
token without an eviction. So weights of low precision, which shift both, hide little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvfidelity.engine_check.answers import Answer, AnswerKind
from kvfidelity.engine_check.bookkeeping import CORRECT, MODES
from kvfidelity.engine_check.drift import Drift, find_drift
from kvfidelity.engine_check.probes import Probe, ProbeSet
from kvfidelity.errors import UserError

Floats = NDArray[np.float64]
#: One hypothesis fits better than another if the logarithm of their likelihood ratio is above the
#: first, and the mean over tokens is above this many standard errors.
LIKELIER, ERRORS = 12.0, 1.5
#: The same of greedy tokens, which say less.
GREEDY_ERRORS = 3.0
#: Logarithm of the likelihood ratio of a greedy token that agrees and one that does not.
GREEDY_WEIGHT = 2.0
#: Times the yardstick that the deviation after evictions may reach.
LIMIT = 3.0
#: Least yardstick, in nats: what rounding in the probe set's file and fp32 sums amount to.
FLOOR = 1e-4
#: Of greedy tokens, by how much the share that differs may be larger than without an eviction,
#: three standard errors aside.
GREEDY_MARGIN = 0.1
#: A yardstick above it, in nats (or share of greedy tokens), is another model's.
COMPARABLE = {AnswerKind.LOGPROB: 1.0, AnswerKind.TOP: 1.0, AnswerKind.GREEDY: 0.5}


@dataclass(frozen=True)
class Deviation:
    """Absolute deviations of an answer. mean, largest: in nats, or share of greedy tokens."""

    mean: float
    largest: float

    @classmethod
    def of(cls, values: Floats) -> Deviation:
        """Mean and maximum of absolute values."""
        return cls(float(np.abs(values).mean()), float(np.abs(values).max()))


@dataclass(frozen=True)
class Departure:
    """The first token that departs from a mode. deviation: in nats, signed. eviction: how many
    evictions came before."""

    probe: str
    token: int
    eviction: int
    deviation: float


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    kind: of the answers. probes, tokens: how many were answered after evictions. comparable:
    whether the answers without an eviction are those of the probe set's model. name: the
    bookkeeping that fits best; a mode or a fault. candidates: the modes that fit as well, itself
    included. misfits: probes on which it does not fit within the engine's precision. compared_with:
    the expected mode that fits best; `departure` is from it. by_probe: mean deviation from each
    bookkeeping, by probe. unseen: what the answers cannot decide.
    """

    kind: AnswerKind
    probes: int
    tokens: int
    comparable: bool
    name: str
    candidates: tuple[str, ...]
    misfits: tuple[str, ...]
    deviation: Deviation
    yardstick: Deviation
    compared_with: str
    departure: Departure | None
    drift: Drift | None
    by_probe: Mapping[str, Mapping[str, float]]
    unseen: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the best bookkeeping explains all answers within the engine's precision."""
        return not self.misfits

    @property
    def is_mode(self) -> bool:
        """Whether a position mode, or `full`, was recognised."""
        return self.fits and self.name in MODES and not self.drifts

    @property
    def drifts(self) -> bool:
        """Whether deviations grow from eviction to eviction."""
        return self.drift is not None and self.drift.grows

    @property
    def decided(self) -> bool:
        """Whether no other mode fits as well."""
        return self.comparable and (not self.is_mode or len(self.candidates) == 1)

    def passes(self, expected: Sequence[str] = CORRECT) -> bool:
        """Whether the engine implements one of the expected modes."""
        return self.comparable and self.is_mode and set(self.candidates) <= set(expected)


def judge(
    answers: Mapping[str, Answer], probe_set: ProbeSet, expected: Sequence[str] = CORRECT
) -> Verdict:
    """Compare an engine's answers with every known bookkeeping.

    Args:
        answers: by the name of the probe; see `read_answers`.
        expected: the modes that the engine may implement; the first departure is from the nearest.

    Raises:
        UserError: no probe with evictions is answered, or none without.
    """
    probes = [probe for probe in probe_set if probe.name in answers]
    evicting = [probe for probe in probes if probe.evictions]
    still = [probe for probe in probes if not probe.evictions]
    check_both(len(evicting), len(still))
    kind = answers[probes[0].name].kind
    own = {p.conversation: answers[p.name].deviations(p.expected[0], p) for p in still}
    yardstick = Deviation.of(np.concatenate(list(own.values())))
    fits = _Fits(answers, evicting, own, kind, yardstick)
    mode = fits.best_mode()
    name = fits.better_fault(mode) or mode
    deviations = fits.deviations(name)
    misfits = tuple(p for p, values in deviations.items() if not _within(kind, values, yardstick))
    compared_with = fits.best_mode(expected)
    return Verdict(
        kind=kind,
        probes=len(evicting),
        tokens=sum(probe.count for probe in evicting),
        comparable=yardstick.mean <= COMPARABLE[kind],
        name=name,
        candidates=tuple(other for other in MODES if other == name or not fits.apart(name, other)),
        misfits=misfits,
        deviation=Deviation.of(np.concatenate(list(deviations.values()))),
        yardstick=yardstick,
        compared_with=compared_with,
        departure=_departure(fits.deviations(compared_with), evicting, yardstick, own, kind),
        drift=None if kind is AnswerKind.GREEDY else find_drift(deviations, evicting, own),
        by_probe=fits.by_probe(),
        unseen=_unseen(kind, evicting),
    )


def check_both(evicting: int, still: int) -> None:
    """Refuse answers with no probe that evicts, or none that does not.

    Args:
        evicting, still: number of probes.
    """
    if not evicting or not still:
        missing = "with evictions" if still else "without an eviction (the yardstick)"
        raise UserError(f"no probe {missing} is answered: feed and answer one more")


def _within(kind: AnswerKind, deviations: Floats, yardstick: Deviation) -> bool:
    """Whether the deviations of one probe are within the engine's precision."""
    mean = float(np.abs(deviations).mean())
    if kind is AnswerKind.GREEDY:
        chance = math.sqrt(yardstick.mean * (1 - yardstick.mean) / len(deviations))
        return mean <= yardstick.mean + GREEDY_MARGIN + 3 * chance
    return mean <= LIMIT * max(yardstick.mean, FLOOR)


class _Fits:
    """How well each bookkeeping fits each scored token."""

    def __init__(
        self,
        answers: Mapping[str, Answer],
        probes: Sequence[Probe],
        own: Mapping[str, Floats],
        kind: AnswerKind,
        yardstick: Deviation,
    ) -> None:
        self._greedy = kind is AnswerKind.GREEDY
        self._deviations: dict[str, dict[str, Floats]] = {}
        # Deviations of the same tokens without an eviction, 0 where that was not answered.
        self._own = {
            probe.name: _first(own.get(probe.conversation), probe.count) for probe in probes
        }
        for probe in probes:
            for expected in probe.expected:
                values = answers[probe.name].deviations(expected, probe)
                for name in expected.names:
                    self._deviations.setdefault(name, {})[probe.name] = values
        self._scale = max(yardstick.mean, FLOOR)
        # Once the best mode is known, its typical deviation says how much rounding is left.
        best = [np.abs(self._paired(probe, self.best_mode())) for probe in self._own]
        self._scale = min(self._scale, max(float(np.median(np.concatenate(best))), FLOOR))

    def deviations(self, name: str) -> dict[str, Floats]:
        """Signed deviations by probe."""
        return self._deviations[name]

    def best_mode(self, modes: Sequence[str] = MODES) -> str:
        """The one that fits best; expected answers of modes are known for every probe."""
        return min(modes, key=lambda mode: sum(self._loss(p, mode).sum() for p in self._own))

    def better_fault(self, mode: str) -> str | None:
        """The fault that fits best, if it fits better than the mode."""
        faults = [each for each in self._deviations if each not in MODES]
        gains = {name: self._advantage(name, mode) for name in faults}
        better = {name: gain for name, gain in gains.items() if gain.is_clear}
        return max(better, key=lambda name: better[name].total) if better else None

    def apart(self, name: str, other: str) -> bool:
        """Whether the first fits better than the other."""
        return self._advantage(name, other).is_clear

    def by_probe(self) -> dict[str, dict[str, float]]:
        """Mean absolute deviation of each probe from each bookkeeping."""
        return {
            probe: {
                name: float(np.abs(values[probe]).mean())
                for name, values in self._deviations.items()
                if probe in values
            }
            for probe in self._own
        }

    def _paired(self, probe: str, name: str) -> Floats:
        return self._deviations[name][probe] - self._own[probe]

    def _loss(self, probe: str, name: str) -> Floats:
        """Per token, the negative log-likelihood up to a constant. The distribution is Student's t
        with one degree of freedom, so that a few large deviations decide nothing."""
        if self._greedy:
            return GREEDY_WEIGHT * self._deviations[name][probe]
        return np.log1p((self._paired(probe, name) / self._scale) ** 2)

    def _advantage(self, name: str, other: str) -> _Gain:
        """By how much one fits better than another, on probes that both are known for."""
        common = [p for p in self._deviations[name] if p in self._deviations[other]]
        gains = [self._loss(probe, other) - self._loss(probe, name) for probe in common]
        least = GREEDY_ERRORS if self._greedy else ERRORS
        return _Gain.of(np.concatenate(gains), least)


@dataclass(frozen=True)
class _Gain:
    """A log-likelihood ratio. total: over all tokens. errors: the mean over its standard error."""

    total: float
    errors: float
    is_clear: bool = False

    @classmethod
    def of(cls, gains: Floats, least_errors: float) -> _Gain:
        """From the gain of each token."""
        total, mean = float(gains.sum()), float(gains.mean())
        spread = float(gains.std(ddof=1)) if len(gains) > 1 else math.inf
        if spread == 0.0:  # as of greedy tokens that all agree with one, and none with the other
            errors = math.copysign(math.inf, mean) if mean else 0.0
        else:
            errors = mean / spread * math.sqrt(len(gains))
        return cls(total, errors, total > LIKELIER and errors > least_errors)


def _first(values: Floats | None, count: int) -> Floats:
    if values is None or len(values) < count:
        return np.zeros(count)
    return values[:count]


def _departure(
    deviations: Mapping[str, Floats],
    probes: Sequence[Probe],
    yardstick: Deviation,
    own: Mapping[str, Floats],
    kind: AnswerKind,
) -> Departure | None:
    """The first token that deviates by more than twice what any did without an eviction; of greedy
    tokens, the first that differs, and not without an eviction, of a probe that does not fit."""
    limit = max(2 * yardstick.largest, 10 * FLOOR)
    for probe in probes:
        values = np.abs(deviations[probe.name])
        beyond = values > limit
        if kind is AnswerKind.GREEDY:
            fits = _within(kind, values, yardstick)
            beyond = (values > _first(own.get(probe.conversation), probe.count)) & (not fits)
        if beyond.any():
            at = int(beyond.argmax())
            eviction = int(probe.last_eviction[at])
            deviation = float(deviations[probe.name][at])
            return Departure(probe.name, probe.scored[0] + at, eviction, deviation)
    return None


def _unseen(kind: AnswerKind, probes: Sequence[Probe]) -> tuple[str, ...]:
    """What the answered probes cannot show."""
    kinds = {probe.kind for probe in probes}
    unseen = []
    if kind is AnswerKind.GREEDY:
        unseen.append("deviations in nats and drift (greedy tokens alone)")
    if "per_head" not in kinds:
        unseen.append("positions shared over heads (per_head is not answered)")
    if "repeated" not in kinds and kind is not AnswerKind.GREEDY:
        unseen.append("drift (no repeated probe is answered)")
    if kinds <= {"prefix", "suffix"}:
        unseen.append(f"modes that agree on a {' and a '.join(sorted(kinds))}")
    return tuple(unseen)
