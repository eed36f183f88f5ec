"""A judge that needs no model and no key: a published formula over measured quantities.

It sees whether the model itself, with nothing evicted, finds the reply likely; loops; parroting; a
missing answer; overlap with the reference. It cannot see whether a fluent, likely reply is true.

    fluency   = clip(1 - (nll - 1) / 4, 0, 1)     nll: nats per token under the full cache
    loops     = clip((rep_3 - 0.1) / 0.4, 0, 1)   share of repeated word trigrams beyond 10%
    parroting = clip((echo - 0.3) / 0.6, 0, 1)    share copied from the prompt beyond 30%
    overlap   = clip(chrf / 40, 0, 1)             chrF against the reference, if there is one
    ended     = 0.9 if it reached the length limit, else 1
    likeness  = 0.75 fluency + 0.25 overlap, or fluency without a reference
    quality   = likeness (1 - loops) (1 - 0.7 parroting) ended
    score     = 1 + round(9 quality)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvfidelity.judges.base import Judge
from kvfidelity.judges.verdict import NOT_FINITE, Verdict, status_without_reply

MODEL = "formula, version 2"


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
        row: `turn`, `reply`, `reply_nll_baseline`, `finish_reason`, `rep_3`, `echo_share`, `chrf`.
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
    for name in ("reply_nll_baseline", "rep_3", "echo_share", "chrf"):
        if row[name] is not None and not math.isfinite(row[name]):
            reason = f"its {name} is {row[name]}"
            return Verdict(**identity, score=None, status=NOT_FINITE, reason=reason)
    if not row["reply"].strip():
        return Verdict(**identity, score=1, status="ok", reason="an empty reply")
    if row["reply_nll_baseline"] is None:
        reason = "its likelihood under the full cache was not measured"
        return Verdict(**identity, score=None, status="not_measured", reason=reason)
    fluency = _clip(1 - (row["reply_nll_baseline"] - 1) / 4)
    loops = _clip(((row["rep_3"] or 0.0) - 0.1) / 0.4)
    parroting = _clip(((row["echo_share"] or 0.0) - 0.3) / 0.6)
    ended = 0.9 if row["finish_reason"] == "length" else 1.0
    likeness, overlap = fluency, "unknown"
    if row["chrf"] is not None:
        shared = _clip(row["chrf"] / 40)
        likeness, overlap = 0.75 * fluency + 0.25 * shared, f"{shared:.2f}"
    quality = likeness * (1 - loops) * (1 - 0.7 * parroting) * ended
    reason = (
        f"fluency {fluency:.2f}, overlap {overlap}, loops {loops:.2f}, "
        f"parroting {parroting:.2f}, {row['finish_reason']}"
    )
    return Verdict(**identity, score=1 + round(9 * quality), status="ok", reason=reason)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
