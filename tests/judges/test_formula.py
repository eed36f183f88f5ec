"""The formula judge: what it can tell apart, what it refuses to score."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kvfidelity.judges.kinds.formula import formula_verdict
from kvfidelity.judges.verdict import Verdict, verdicts_frame

GOOD: dict[str, Any] = {
    "turn": 3,
    "reply": "The ferry leaves at nine.",
    "finish_reason": "eos",
    "reply_nll_baseline": 1.0,
    "rep_3": 0.0,
    "echo_share": 0.0,
    "chrf": 40.0,
}


def score(**changes: Any) -> int | None:
    return formula_verdict(GOOD | changes, "formula", "formula").score


def test_the_formula_by_hand() -> None:
    by_nll = {0.0: 10, 0.1: 10, 0.4: 9, 1.0: 7, 2.0: 5, 4.0: 3, 7.0: 1, 20.0: 1}
    assert {nll: score(reply_nll_baseline=nll) for nll in by_nll} == by_nll
    assert score(rep_3=0.5) == 1  # all loops
    assert score(rep_3=0.3) == 4  # half of them: 1 + round(9 x 2/3 x 1/2)
    assert score(echo_share=0.9) == 1 + round(9 * 2 / 3 * 0.3)


def test_it_uses_nothing_that_its_test_does_not_have() -> None:
    """A test's replies have no reference, and nothing tells whether they were cut off."""
    for changes in ({"chrf": None}, {"chrf": 0.0}, {"finish_reason": "length"}):
        assert score(**changes) == score()


def test_worse_is_never_scored_higher() -> None:
    for key, worse in {"reply_nll_baseline": [1, 2, 3, 4, 6], "rep_3": [0, 0.2, 0.4, 0.6]}.items():
        scores = [score(**{key: value}) or 0 for value in worse]
        assert scores == sorted(scores, reverse=True)


def test_a_reply_that_is_missing_or_not_measured_gets_no_number() -> None:
    silent = formula_verdict(GOOD | {"reply": None}, "formula", "formula")
    assert (silent.score, silent.status) == (None, "no_reply")
    unknown = formula_verdict(GOOD | {"reply_nll_baseline": None}, "formula", "formula")
    assert (unknown.score, unknown.status) == (None, "not_measured")
    assert score(reply="  ") == 1


def test_past_the_trained_window_likelihood_is_no_measure_and_gives_no_score() -> None:
    for reply in ("The ferry leaves at nine.", "  "):
        past = GOOD | {"reply": reply, "past_window": True}
        found = formula_verdict(past, "formula", "formula")
        assert (found.score, found.status) == (None, "past_window")
    silent = formula_verdict(GOOD | {"reply": None, "past_window": True}, "formula", "formula")
    assert silent.status == "no_reply"
    assert score(past_window=False) == score()


def test_a_ruined_history_does_not_make_a_reply_likely() -> None:
    """After its own loop a loop is likely; after the baseline's history it is not."""
    assert score(reply_nll_baseline=0.1, reply_nll_baseline_history=4.0) == 3
    assert score(reply_nll_baseline=None, reply_nll_baseline_history=4.0) == 3
    assert score(reply_nll_baseline=4.0, reply_nll_baseline_history=None) == 3


def test_a_verdict_cannot_be_invented() -> None:
    names = ("judge", "judge_kind", "judge_model", "rubric")
    about: dict[str, Any] = {"turn": 0, "reason": None} | dict.fromkeys(names, "x")
    with pytest.raises(ValueError, match="from 1 to 10"):
        Verdict(**about, score=11, status="ok")
    with pytest.raises(ValueError, match="exactly if"):
        Verdict(**about, score=5, status="failed")
    with pytest.raises(ValueError, match="exactly if"):
        Verdict(**about, score=None, status="ok")


def test_verdicts_become_rows_under_their_own_name() -> None:
    frame = verdicts_frame({"a/run": [formula_verdict(GOOD, "my-judge", "formula")]})
    assert frame["run"].to_list() == ["a/run"]
    assert frame["judge"].to_list() == ["my-judge"]
    assert frame["judge_kind"].to_list() == ["formula"]
    assert "gpt" not in frame["judge_model"][0].lower()


@pytest.mark.parametrize(
    "column", ["reply_nll_baseline", "reply_nll_baseline_history", "rep_3", "echo_share"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gets_no_score(column: str, value: float) -> None:
    refused = formula_verdict(GOOD | {column: value}, "formula", "formula")
    assert (refused.score, refused.status) == (None, "not_finite")
    assert column in str(refused.reason)
