"""What a verdict is, for judges of every kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kvfidelity.judges.json_text import without_surrogates

if TYPE_CHECKING:
    import polars as pl

STATUS = (
    "ok",
    "failed",
    "refused",
    "truncated",
    "unparsable",
    "no_reply",
    "not_measured",
    "past_window",
    "not_finite",
    "no_history",
)
#: Finish reasons of replies that are withheld, and the status of their verdicts.
NOT_FINITE, NO_HISTORY = "not_finite", "no_history"


def status_without_reply(finish_reason: str) -> str:
    """The status of a turn that has no reply to judge."""
    return finish_reason if finish_reason in (NOT_FINITE, NO_HISTORY) else "no_reply"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a verdict and a comparison have in common.

    status: "ok", or why there is none. reason: the judge's words, or why there is none; its
    surrogates, which no file can hold, are replaced.
    request: key of the request; those that share it were requested and paid for once.
    answers: number of answers, unusable ones included. completion_tokens: with reasoning_tokens.
    cost_usd: of all answers, when they were requested; None if nothing was paid or no price is
    known. possible_usd: the most that may have been charged on top, for tries that were lost and
    answers that do not say their tokens; None if there are none. messages_cut: messages of the
    history that the judge was not shown.
    """

    turn: int
    judge: str
    judge_kind: str
    judge_model: str
    rubric: str
    status: str
    reason: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    request: str | None = None
    answers: int | None = None
    reasoning_tokens: int | None = None
    possible_usd: float | None = None
    messages_cut: int | None = None

    def __post_init__(self) -> None:
        if self.reason is not None:
            object.__setattr__(self, "reason", without_surrogates(self.reason))


@dataclass(frozen=True, kw_only=True)
class Verdict(Judgement):
    """One verdict on one reply.

    score: 1 to 10, None unless `status` is "ok".
    """

    score: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.score is None) == (self.status == "ok"):
            raise ValueError(f"a verdict has a score exactly if its status is ok: {self}")
        if self.score is not None and not 1 <= self.score <= 10:
            raise ValueError(f"a score is from 1 to 10, not {self.score}")


def verdicts_frame(verdicts: Mapping[str, Iterable[Verdict]]) -> pl.DataFrame:
    """Verdicts by run as a frame with the columns of `records.columns.RUN_VERDICTS`."""
    # Here, for the Snakefile imports this module and no polars.
    import polars as pl

    from kvfidelity.records.columns import RUN_VERDICTS

    rows = [{"run": run} | asdict(verdict) for run, found in verdicts.items() for verdict in found]
    return pl.DataFrame(rows, RUN_VERDICTS)
