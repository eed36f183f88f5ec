"""A verdict in five lines."""

from __future__ import annotations

from kvfidelity.engine_check.answers import AnswerKind
from kvfidelity.engine_check.bookkeeping import BY_NAME, CORRECT, MODES
from kvfidelity.engine_check.drift import Drift
from kvfidelity.engine_check.verdict import FLOOR, Departure, Deviation, Verdict

_KINDS = {
    AnswerKind.LOGPROB: "log-probabilities",
    AnswerKind.TOP: "top-k log-probabilities",
    AnswerKind.GREEDY: "greedy tokens",
}


def message(verdict: Verdict) -> str:
    """Mode, deviation, first departure, drift, what to look for; one line each."""
    lines = {
        "mode": _mode(verdict),
        "deviation": _deviation(verdict),
        "first departure": _departure(verdict.departure, verdict.compared_with, verdict.kind),
        "drift": _drift(verdict.drift, verdict.kind),
        "look for": _look_for(verdict),
    }
    return "\n".join(f"{name + ':':<17}{text}" for name, text in lines.items())


def _mode(verdict: Verdict) -> str:
    answered = (
        f"({verdict.tokens} tokens of {verdict.probes} probes with evictions, "
        f"{_KINDS[verdict.kind]})"
    )
    if not verdict.comparable:
        return f"not comparable {answered}: the answers without an eviction deviate as well"
    if not verdict.fits:
        share = f"{len(verdict.misfits)} of {verdict.probes} probes"
        return f"none of these; {verdict.name} is nearest but does not fit {share} {answered}"
    if verdict.name not in MODES:
        return f"none of these; {verdict.name}, a fault of {BY_NAME[verdict.name].mode} {answered}"
    if verdict.drifts:
        return f"none of these; {verdict.name}, but it drifts {answered}"
    if len(verdict.candidates) > 1:
        return f"undecided between {' and '.join(verdict.candidates)} {answered}"
    return f"{verdict.name} {answered}"


def _deviation(verdict: Verdict) -> str:
    found, own = verdict.deviation, verdict.yardstick
    if verdict.kind is AnswerKind.GREEDY:
        return f"{found.mean:.1%} of greedy tokens differ; {own.mean:.1%} without an eviction"
    both = f"{_nats(found)}; without an eviction {_nats(own)}"
    if max(found.mean, own.mean) < FLOOR:
        return f"{both}: rounding"
    return f"{both}: {found.mean / max(own.mean, FLOOR):.1f} times the yardstick"


def _nats(deviation: Deviation) -> str:
    return f"mean {deviation.mean:.2g}, largest {deviation.largest:.2g} nats"


def _departure(departure: Departure | None, mode: str, kind: AnswerKind) -> str:
    if departure is None:
        return f"none from {mode}"
    amount = "" if kind is AnswerKind.GREEDY else f" by {departure.deviation:+.2g} nats"
    return (
        f"from {mode}{amount} in {departure.probe}, token {departure.token}, after eviction "
        f"{departure.eviction}"
    )


def _drift(drift: Drift | None, kind: AnswerKind) -> str:
    if kind is AnswerKind.GREEDY:
        return "undecidable from greedy tokens"
    if drift is None:
        return "undecidable: no repeated probe is answered both with and without evictions"
    word = "grows" if drift.grows else "none"
    return (
        f"{word}: mean deviation {drift.early:.2g} nats over the first and {drift.late:.2g} over "
        f"the last third of {drift.evictions} evictions"
    )


def _look_for(verdict: Verdict) -> str:
    if not verdict.comparable:
        return (
            "other weights, another tokenizer, a token added at the beginning, answers shifted by "
            "one token, or logarithms of another base"
        )
    parts = []
    drift = verdict.drift
    if drift is not None and drift.grows and set(verdict.misfits) <= {drift.probe}:
        parts.append(
            "keys that are rotated in place in low precision, again at each eviction: rotate them "
            "from un-rotated keys, or in fp32"
        )
    elif not verdict.fits:
        parts.append(
            f"what differs in {', '.join(verdict.misfits[:3])}: tokens that are evicted or kept "
            "against the schedule, or a fault that is not known here"
        )
    if verdict.fits and verdict.name not in CORRECT:
        parts.append(BY_NAME[verdict.name].look_for)
    if verdict.unseen:
        parts.append(f"not shown by these answers: {'; '.join(verdict.unseen)}")
    return "; ".join(parts) or "nothing"
