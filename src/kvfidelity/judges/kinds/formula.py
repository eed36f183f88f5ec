"""A judge that needs no model and no key: a published formula over measured quantities.

It sees whether the model itself, with nothing evicted, finds the reply likely; loops; parroting; a
missing answer. It cannot see whether a fluent, likely reply is true, answers the message or is
complete. It uses neither a reference nor the finish reason: its test has no reference that is not
the reply itself, and nearly all replies of a run end at the length limit.

    fluency   = clip(1 - log2(1 + nll) / 3, 0, 1)   nll: nats per token, nothing being evicted
    loops     = clip((rep_3 - 0.1) / 0.4, 0, 1)     share of repeated word trigrams beyond 10%
    parroting = clip((echo - 0.3) / 0.6, 0, 1)      share copied from the prompt beyond 30%
    quality   = fluency (1 - loops) (1 - 0.7 parroting)
    score     = 1 + round(9 quality)

The history is the baseline's where its likelihood was measured, so that the replies of all runs of
a dialogue follow the same conversation: after a ruined history a ruined reply is likely. Past the
trained window that likelihood is no measure of quality, so replies there get no score.

The logarithm spreads the scale where the replies of a run are: 0.1 nats are 10, 0.4 are 9, 1 is 7,
2 are 5, 4 are 3, and 7 are 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvfidelity.judges.base import Judge
from kvfidelity.judges.verdict import NOT_FINITE, Verdict, status_without_reply

MODEL = "formula, version 5"
#: The likelihoods that it takes, the first that there is.
LIKELIHOODS = ("reply_nll_baseline_history", "reply_nll_baseline")


@dataclass(frozen=True)
class FormulaJudge(Judge):
    """Computes a score from measured quantities; needs no model and no key."""

    kind: ClassVar[str] = "formula"
    needs_likelihood: ClassVar[bool] = True

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        return [formula_verdict(row, self.name, self.rubric.stem) for row in rows]


def formula_verdict(row: Mapping[str, Any], judge: str, rubric: str) -> Verdict:
    """The verdict on one turn.

    Args:
        row: `turn`, `reply`, `finish_reason`, `rep_3`, `echo_share` and one of LIKELIHOODS; of a
            run's turn also `past_window`, see `judges.replies`.
        judge: its name in the config. rubric: its rubric's name.
    """
    identity = {
        "turn": row["turn"],
        "judge": judge,
        "judge_kind": FormulaJudge.kind,
        "judge_model": MODEL,
        "rubric": rubric,
    }
    if row["reply"] is None:
        reason = f"no own reply ({row['finish_reason']})"
        status = status_without_reply(row["finish_reason"])
        return Verdict(**identity, score=None, status=status, reason=reason)
    likelihood = next((name for name in LIKELIHOODS if row.get(name) is not None), LIKELIHOODS[-1])
    for name in (likelihood, "rep_3", "echo_share"):
        if row[name] is not None and not math.isfinite(row[name]):
            reason = f"its {name} is {row[name]}"
            return Verdict(**identity, score=None, status=NOT_FINITE, reason=reason)
    if row.get("past_window"):
        reason = "past the trained window its likelihood is no measure of quality"
        return Verdict(**identity, score=None, status="past_window", reason=reason)
    if not row["reply"].strip():
        return Verdict(**identity, score=1, status="ok", reason="an empty reply")
    if row[likelihood] is None:
        reason = "its likelihood with nothing evicted was not measured"
        return Verdict(**identity, score=None, status="not_measured", reason=reason)
    fluency = _clip(1 - math.log2(1 + max(0.0, row[likelihood])) / 3)
    loops = _clip(((row["rep_3"] or 0.0) - 0.1) / 0.4)
    parroting = _clip(((row["echo_share"] or 0.0) - 0.3) / 0.6)
    quality = fluency * (1 - loops) * (1 - 0.7 * parroting)
    reason = f"fluency {fluency:.2f}, loops {loops:.2f}, parroting {parroting:.2f}"
    return Verdict(**identity, score=1 + round(9 * quality), status="ok", reason=reason)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
