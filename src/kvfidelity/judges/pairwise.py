"""Compares two replies in both orders; only if both agree is it a preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvfidelity.judges.answers import choice_in
from kvfidelity.judges.comparison import BETTER, SAME, TIE, WORSE, Comparison, Pair
from kvfidelity.judges.llm import (
    Missing,
    ask_with_retries,
    history_cut,
    is_cut,
    judge_request,
    usage,
)
from kvfidelity.judges.requests import Answer, Client, Outcome, Request
from kvfidelity.judges.rubric import Rubric, rubric_parts
from kvfidelity.judges.verdict import NOT_FINITE

Side = tuple[Request, list[Outcome], tuple[str, str] | Missing]


class PairwiseJudge:
    """Asks a model which of two replies is better.

    Args:
        name: of the judge in the config.
        entry: its config entry with all defaults, see `kinds.openai.with_defaults`.
        rubric: what is asked.
        client: sends the requests.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], rubric: Rubric, client: Client) -> None:
        self.name, self.rubric, self._client = name, rubric, client
        self.entry = entry

    def compare(
        self, runs: Sequence[tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]]
    ) -> list[list[Comparison]]:
        """The replies of runs against those of their baselines, turn by turn.

        Args:
            runs: pairs of rows (see `judges.replies`): of a run and of its baseline, whose
                conversation is shown.
        """
        found: list[list[Comparison | None]] = []
        pairs: list[Pair] = []
        for rows, baseline in runs:
            others = {row["turn"]: (index, row) for index, row in enumerate(baseline)}
            given: list[Comparison | None] = []
            for row in rows:
                index, other = others.get(row["turn"], (0, None))
                if row["reply"] is None or other is None or other["reply"] is None:
                    reasons = {row["finish_reason"], other["finish_reason"] if other else None}
                    status = NOT_FINITE if NOT_FINITE in reasons else "no_reply"
                    given.append(
                        self._comparison_of(row, None, status, "one of the two is missing")
                    )
                elif row["reply"] == other["reply"]:
                    given.append(self._comparison_of(row, TIE, SAME, "the same text"))
                else:
                    given.append(None)
                    # The baseline's bounds the room for a reply, the same for every policy.
                    bounded = {**row, "fed_reply": other["fed_reply"]}
                    pairs.append((bounded, other["reply"], baseline[:index]))
            found.append(given)
        compared = iter(self.compare_each(pairs))
        return [[one if one else next(compared) for one in given] for given in found]

    def compare_each(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """Replies against others, requested together."""
        requests = [
            request
            for row, other, history in pairs
            for request in (
                self._request(row, history, row["reply"], other),
                self._request(row, history, other, row["reply"]),
            )
        ]
        read = ask_with_retries(self._client, requests, self.entry["attempts"], _choice)
        sides = zip(read[::2], read[1::2], strict=True)
        return [
            self._comparison(row, history, *both)
            for (row, _, history), both in zip(pairs, sides, strict=True)
        ]

    def _request(
        self, row: Mapping[str, Any], history: Sequence[Mapping[str, Any]], one: str, two: str
    ) -> Request:
        cut = history_cut(self.rubric, row, history, self.entry)
        shown = rubric_parts(self.rubric, row, history, cut)
        parts = [*shown, ("first", one), ("second", two)]
        return judge_request(self.rubric, parts, self.entry)

    def _comparison(
        self, row: Mapping[str, Any], history: Sequence[Mapping[str, Any]], one: Side, two: Side
    ) -> Comparison:
        first_cut, stop = history_cut(self.rubric, row, history, self.entry)
        usage_fields = usage([*one[1], *two[1]]) | {"messages_cut": stop - first_cut}
        usage_fields |= {"request": f"{one[0].key} {two[0].key}"}
        for _, _, choice in (one, two):
            if isinstance(choice, Missing):
                return self._comparison_of(row, None, choice.status, choice.reason, **usage_fields)
        assert not isinstance(one[2], Missing) and not isinstance(two[2], Missing)
        (first, why), (second, why_swapped) = one[2], two[2]
        outcome = {("first", "second"): BETTER, ("second", "first"): WORSE}.get(
            (first, second), TIE
        )
        choices = {"choice": first, "choice_swapped": second}
        reason = f"{why}; exchanged: {why_swapped}"
        return self._comparison_of(row, outcome, "ok", reason, **choices, **usage_fields)

    def _comparison_of(
        self, row: Mapping[str, Any], outcome: str | None, status: str, reason: str, **more: Any
    ) -> Comparison:
        about: dict[str, Any] = {
            "turn": row["turn"],
            "judge": self.name,
            "judge_kind": self.entry["kind"],
            "judge_model": self.entry["model"],
            "rubric": self.rubric.name,
            "choice": None,
            "choice_swapped": None,
        }
        return Comparison(**{**about, **more}, outcome=outcome, status=status, reason=reason)


def _choice(answer: Answer) -> tuple[str, str]:
    return choice_in(answer.content or "", cut=is_cut(answer))
