"""Verdicts of answers that tell little, or of few tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvfidelity.engine_check.answers import Answer, AnswerKind
from kvfidelity.engine_check.message import message
from kvfidelity.engine_check.probes import Eviction, Expected, Probe, ProbeSet
from kvfidelity.engine_check.verdict import Verdict, judge
from tests.engine_check.simulated import as_answers

NAMES = ("full", "stale", "original", "rerotated")
TOKENS = 16


def expected(name: str, token: int) -> Expected:
    """Every scored token is `token`, with log-probability -token."""
    return Expected((name,), *(np.full(TOKENS, value) for value in (-token, token, -token)))


def probes(evictions: int = 1) -> ProbeSet:
    """One conversation with and without evictions; in each mode another token is likely."""
    tokens, scored = tuple(range(9, 9 + 8 + TOKENS)), (8, 8 + TOKENS)
    still = Probe("still", "one", "no_eviction", tokens, scored, (), (expected(NAMES[0], 1),))
    each = tuple(Eviction(7 + index, (((0, 4),),)) for index in range(evictions))
    modes = tuple(expected(name, token) for token, name in enumerate(NAMES, start=1))
    return ProbeSet({}, (still, replace(still, name="kept", evictions=each, expected=modes)))


def greedy(still: list[int], kept: list[int]) -> dict[str, Answer]:
    return {"still": Answer(AnswerKind.GREEDY, still), "kept": Answer(AnswerKind.GREEDY, kept)}


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_that_all_agree_with_one_mode_alone_decide_it(name: str) -> None:
    verdict = judge(greedy([1] * TOKENS, [NAMES.index(name) + 1] * TOKENS), probes())
    assert (verdict.name, verdict.candidates, verdict.fits) == (name, (name,), True)


def test_the_first_greedy_token_that_departs_is_named_though_one_differs_without_an_eviction() -> (
    None
):
    verdict = judge(greedy([9] + [1] * (TOKENS - 1), [2] * TOKENS), probes())
    assert verdict.name == "stale"
    assert verdict.departure is not None
    assert (verdict.departure.probe, verdict.departure.token) == ("kept", 9)
    right = judge(greedy([9] + [1] * (TOKENS - 1), [4, 9] + [4] * (TOKENS - 2)), probes())
    assert (right.name, right.departure) == ("rerotated", None)


@pytest.mark.parametrize(("evictions", "decidable"), [(1, False), (9, True)])
def test_drift_needs_tokens_between_the_evictions(evictions: int, decidable: bool) -> None:
    answers = {
        name: Answer(AnswerKind.LOGPROB, [value] * TOKENS)
        for name, value in (("still", -1.0), ("kept", -4.0))
    }
    made = probes(evictions)
    assert (judge(answers, made).drift is not None) == decidable
    # All evictions before the first scored token: nothing is seen between them.
    kept = replace(made.probes[1], evictions=(Eviction(7, (((0, 4),),)),) * evictions)
    assert judge(answers, ProbeSet({}, (made.probes[0], kept))).drift is None


def test_answers_that_are_not_finite_fit_nothing() -> None:
    answers = {
        name: Answer(AnswerKind.LOGPROB, [value] * TOKENS)
        for name, value in (("still", -1.0), ("kept", float("nan")))
    }
    verdict = judge(answers, probes())
    assert not verdict.fits and not verdict.passes(NAMES)
    answers["still"] = answers["kept"]
    assert not judge(answers, probes()).comparable


def drifting(probe_set: ProbeSet) -> Verdict:
    """Right, but in the repeated probe deviations grow until it no longer fits."""
    computed = {
        probe.name: probe.expected_of("rerotated") for probe in probe_set if probe.evictions
    }
    computed |= {probe.name: probe.expected[0] for probe in probe_set if not probe.evictions}
    [name] = [probe.name for probe in probe_set if len(probe.evictions) == 40]
    right = computed[name]
    growing = np.linspace(0, 0.05, len(right.logprob)) * np.resize([-1, 1], len(right.logprob))
    computed[name] = replace(right, logprob=np.minimum(right.logprob + growing, 0))
    return judge(as_answers(computed, AnswerKind.LOGPROB), probe_set)


def test_drift_that_no_longer_fits_is_still_called_drift(probe_set: ProbeSet) -> None:
    verdict = drifting(probe_set)
    assert (verdict.name, verdict.drifts, verdict.passes()) == ("rerotated", True, False)
    assert not verdict.fits
    look_for = message(verdict).splitlines()[-1]
    assert "rotated in place in low precision" in look_for
    assert "against the schedule" not in look_for
