"""What a judge kind declares, and what a judge gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kvfidelity.errors import UserError
from kvfidelity.judges.requests import Client
from kvfidelity.judges.verdict import Verdict

if TYPE_CHECKING:
    from kvfidelity.judges.comparison import Comparison, Pair

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Judge(ABC):
    """A judge of the config.

    Subclasses set `kind` and are dataclasses; their options are fields made by `options.option`.
    A subclass without network has to define `judge` only.

    Args:
        name: its name in the config.
        rubric: its rubric's file.
        client: sends requests to a model; None unless `needs_network`.
    """

    kind: ClassVar[str]
    #: Whether it gives scores; a kind that does not must set `compares`.
    scores: ClassVar[bool] = True
    #: Whether it can compare two replies, which `rubric: pairwise` asks for.
    compares: ClassVar[bool] = False
    #: Whether its rows need `reply_nll_baseline` when the judge itself is tested.
    needs_likelihood: ClassVar[bool] = False
    #: Whether it asks a model through `client`: limits and prices then apply, and its test repeats
    #: each verdict and adds replies that address the judge.
    needs_network: ClassVar[bool] = False
    #: JSON Schema rules over several options, such as "this one requires that one".
    rules: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    name: str
    rubric: Path
    client: Client | None

    @abstractmethod
    def judge(self, rows: Sequence[Row]) -> list[Verdict]:
        """One verdict per turn of one run, in order.

        Args:
            rows: the run's columns of turns and text metrics, such as `turn`, `prompt`, `reply`
                (None if there is no own reply, or `finish_reason` is "not_finite"),
                `reference`, `finish_reason`, `rep_3`.
        """

    def judge_runs(self, runs: Sequence[Sequence[Row]]) -> list[list[Verdict]]:
        """What `judge` gives for each of several runs."""
        return [self.judge(rows) for rows in runs]

    def judge_each(
        self, replies: Sequence[tuple[Row, Sequence[Row]]], variants: Sequence[Mapping[str, int]]
    ) -> list[Verdict]:
        """Verdicts on single replies, each with the turns before it.

        Args:
            variants: of each reply, what tells a repeated request from the first.
        """
        return self.judge([row for row, _ in replies])

    def compare(
        self, runs: Sequence[tuple[Sequence[Row], Sequence[Row]]]
    ) -> list[list[Comparison]]:
        """Comparisons of runs with their baselines, turn by turn; needs `compares`."""
        raise UserError(f"judge {self.name}: kind {self.kind} compares nothing")

    def compare_each(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """Comparisons of single replies with others; needs `compares`."""
        raise UserError(f"judge {self.name}: kind {self.kind} compares nothing")

    def verdict(
        self, row: Row, score: int | None, reason: str, status: str | None = None
    ) -> Verdict:
        """A verdict of this judge on a turn.

        Args:
            score: 1 to 10; None needs a `status` of `verdict.STATUS` that says why.
        """
        return Verdict(
            turn=row["turn"],
            judge=self.name,
            judge_kind=self.kind,
            judge_model=self.kind,
            rubric=self.rubric.stem,
            score=score,
            status=status or "ok",
            reason=reason,
        )
