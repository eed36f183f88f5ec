"""What a comparison of two replies is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from kvfidelity.judges.json_text import without_surrogates

BETTER, WORSE, TIE = "better", "worse", "tie"
SCHEMA: dict[str, Any] = {
    "turn": pl.Int32,
    "judge": pl.String,
    "judge_kind": pl.String,
    "judge_model": pl.String,
    "rubric": pl.String,
    "outcome": pl.String,
    "choice": pl.String,
    "choice_swapped": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "prompt_tokens": pl.Int32,
    "completion_tokens": pl.Int32,
    "cost_usd": pl.Float64,
    "request": pl.String,
    "answers": pl.Int32,
    "reasoning_tokens": pl.Int32,
    "possible_usd": pl.Float64,
    "messages_cut": pl.Int32,
}
#: Columns of comparisons of a good reply with its corruption of one `kind`.
CORRUPTION_COMPARISONS: dict[str, Any] = {
    "item": pl.Int32,
    "dialogue": pl.String,
    "kind": pl.String,
    **SCHEMA,
}

#: A turn with its reply, the other reply, and the turns before.
Pair = tuple[Mapping[str, Any], str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Comparison:
    """One reply against another.

    choice, choice_swapped: "first", "second" or "tie", with the reply shown first, then second.
    outcome: "better" or "worse" if both orders agree, else "tie"; None unless `status` is "ok" or
    "same" (equal texts, which are not sent to a model). request: keys of both requests.
    messages_cut: messages of the history that the judge was not shown.
    """

    turn: int
    judge: str
    judge_kind: str
    judge_model: str
    rubric: str
    outcome: str | None
    choice: str | None
    choice_swapped: str | None
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


def comparisons_frame(comparisons: Iterable[Comparison]) -> pl.DataFrame:
    """Comparisons as a table."""
    return pl.DataFrame([asdict(comparison) for comparison in comparisons], SCHEMA)
