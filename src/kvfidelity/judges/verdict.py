"""What a verdict is, whoever gives it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import polars as pl

from kvfidelity.records.columns import VERDICTS

STATUS = ("ok", "failed", "refused", "truncated", "unparsable", "no_reply", "not_measured")


@dataclass(frozen=True)
class Verdict:
    """One verdict on one reply.

    score: 1 to 10, None unless `status` is "ok". reason: the judge's words, or why there is none.
    request: hash of what was asked; verdicts that share it were asked and paid for once.
    answers: how many came, unusable ones included. cost_usd: of all of them, when they were asked;
    None where nothing was paid or no price is known.
    """

    turn: int
    judge: str
    judge_kind: str
    judge_model: str
    rubric: str
    score: int | None
    status: str
    reason: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    request: str | None = None
    answers: int | None = None

    def __post_init__(self) -> None:
        if (self.score is None) == (self.status == "ok"):
            raise ValueError(f"a verdict has a score exactly if its status is ok: {self}")
        if self.score is not None and not 1 <= self.score <= 10:
            raise ValueError(f"a score is from 1 to 10, not {self.score}")


def verdicts_frame(verdicts: Iterable[Verdict]) -> pl.DataFrame:
    """Verdicts as a frame with the columns of `records.columns.VERDICTS`."""
    return pl.DataFrame([asdict(verdict) for verdict in verdicts], VERDICTS)
