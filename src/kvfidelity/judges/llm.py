"""Scores from a model behind an endpoint: replies to requests, answers to verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kvfidelity.judges.address import endpoint_name
from kvfidelity.judges.answers import says_nothing, score_in
from kvfidelity.judges.history import messages_cut, size_of
from kvfidelity.judges.presets import answer_tokens_of, temperature_of
from kvfidelity.judges.requests import Answer, Client, Failure, Outcome, Request
from kvfidelity.judges.rubric import WITH_HISTORY, AnswerFormat, Rubric, message_of, rubric_parts
from kvfidelity.judges.verdict import Verdict, status_without_reply

#: Tokens of delimiters, of the answer's schema, and of what an endpoint adds.
FRAME_TOKENS = 400
#: Tokens of the judge's, by the estimate of `history`, for one token of a judged model.
MODEL_TOKEN_SIZE = 2
#: Finish reasons of an answer that is cut off, also in the words of endpoints that pass on others'.
CUT = ("length", "max_tokens", "MAX_TOKENS", "model_length")
Read = TypeVar("Read")
#: A turn with a reply, and the turns before it.
ReplyWithHistory = tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Missing:
    """Why an answer gives no verdict: a status of `verdict.STATUS` and the reason."""

    status: str
    reason: str


class LLMJudge:
    """Asks a model for verdicts.

    Args:
        name: of the judge in the config.
        entry: its config entry with all defaults, see `kinds.openai.with_defaults`.
        rubric: what is asked.
        client: sends the requests.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], rubric: Rubric, client: Client) -> None:
        self.name, self.rubric, self._client = name, rubric, client
        self.entry = entry

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts on all turns of one run, in order.

        Args:
            rows: `turn`, `prompt`, `fed_reply`, `reply`, `reference`, `finish_reason`.
        """
        return self.judge_runs([rows])[0]

    def judge_runs(self, runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Verdict]]:
        """The same for several runs, requested together."""
        given = iter(self.judge_each([reply for rows in runs for reply in _with_replies(rows)]))
        return [
            [self._no_reply(row) if row["reply"] is None else next(given) for row in rows]
            for rows in runs
        ]

    def judge_each(
        self,
        replies: Sequence[ReplyWithHistory],
        variants: Sequence[Mapping[str, int]] | None = None,
    ) -> list[Verdict]:
        """Verdicts on replies, each with the turns before it.

        Args:
            variants: of each reply, see `Request.variant`.
        """
        pairs = zip(replies, variants or [{}] * len(replies), strict=True)
        requests = [self.request(row, history, variant) for (row, history), variant in pairs]
        read = ask_with_retries(self._client, requests, self.entry["attempts"], self._score)
        cuts = [history_cut(self.rubric, *reply, self.entry) for reply in replies]
        return [
            self._verdict(row, stop - first, *found)
            for (row, _), (first, stop), found in zip(replies, cuts, read, strict=True)
        ]

    def request(
        self,
        row: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        variant: Mapping[str, int] | None = None,
    ) -> Request:
        """The request for one reply."""
        cut = history_cut(self.rubric, row, history, self.entry)
        parts = [*rubric_parts(self.rubric, row, history, cut), ("reply", str(row["reply"]))]
        return judge_request(self.rubric, parts, self.entry, variant)

    def _score(self, answer: Answer) -> tuple[int, str]:
        return score_in(answer.content or "", self.rubric, cut=is_cut(answer))

    def _no_reply(self, row: Mapping[str, Any]) -> Verdict:
        reason = f"no own reply ({row['finish_reason']})"
        status = status_without_reply(row["finish_reason"])
        return Verdict(**self._about(row), score=None, status=status, reason=reason)

    def _verdict(
        self,
        row: Mapping[str, Any],
        cut: int,
        request: Request,
        outcomes: Sequence[Outcome],
        read: tuple[int, str] | Missing,
    ) -> Verdict:
        score, status, reason = None, "ok", None
        if isinstance(read, Missing):
            status, reason = read.status, read.reason
        else:
            score, reason = read
        identity = self._about(row) | {"request": request.key, "messages_cut": cut}
        identity |= usage(outcomes)
        return Verdict(**identity, score=score, status=status, reason=reason)

    def _about(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "turn": row["turn"],
            "judge": self.name,
            "judge_kind": self.entry["kind"],
            "judge_model": self.entry["model"],
            "rubric": self.rubric.name,
        }


def _with_replies(rows: Sequence[Mapping[str, Any]]) -> list[ReplyWithHistory]:
    return [(row, rows[:index]) for index, row in enumerate(rows) if row["reply"] is not None]


def history_cut(
    rubric: Rubric,
    row: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    entry: Mapping[str, Any],
) -> tuple[int, int]:
    """Which messages of the history a judge's context does not hold; the same for every policy."""
    if entry["context_tokens"] is None or rubric.name not in WITH_HISTORY:
        return 0, 0
    # The judged replies of two policies differ in length, so each counts at one bound for all.
    most = MODEL_TOKEN_SIZE * (entry["reply_tokens"] or 0)
    reply = max(size_of(row["reference"], row.get("fed_reply")), most)
    size = size_of(rubric.text) + size_of(message_of(row)) + 2 * reply
    left = entry["context_tokens"] - answer_tokens_of(entry) - size - FRAME_TOKENS
    return messages_cut(history, max(0, left))


def judge_request(
    rubric: Rubric,
    parts: Sequence[tuple[str, str]],
    entry: Mapping[str, Any],
    variant: Mapping[str, int] | None = None,
) -> Request:
    """A request under a judge's config entry, see `Request.variant`."""
    parameters: dict[str, Any] = {entry["tokens_parameter"]: answer_tokens_of(entry)}
    temperature, effort = temperature_of(entry), entry["reasoning_effort"]
    if temperature is not None:
        parameters["temperature"] = temperature
    if effort is not None:
        parameters["reasoning_effort"] = effort
    body = rubric.body(parts, entry["model"], AnswerFormat(entry["answer_format"]), **parameters)
    return Request(body, variant or {}, endpoint_name(entry))


def usage(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Number, tokens and dollars of outcomes; None for what no answer reports."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    return {
        "answers": len(answers),
        "prompt_tokens": _sum_known(answer.prompt_tokens for answer in answers),
        "completion_tokens": _sum_known(answer.completion_tokens for answer in answers),
        "reasoning_tokens": _sum_known(answer.reasoning_tokens for answer in answers),
        "cost_usd": _sum_known(answer.usd for answer in answers),
        "possible_usd": sum(outcome.possible_usd for outcome in outcomes) or None,
    }


def ask_with_retries(
    client: Client, requests: Sequence[Request], attempts: int, read: Callable[[Answer], Read]
) -> list[tuple[Request, list[Outcome], Read | Missing]]:
    """Each request with its outcomes and the reading of the last; unreadable ones are retried.

    Args:
        attempts: tries per request at most.
        read: returns the content of an answer; raises ValueError for an unusable one.
    """
    outcomes: list[list[Outcome]] = [[] for _ in requests]
    found: dict[int, tuple[Request, Read | Missing]] = {}
    waiting = list(range(len(requests)))
    for attempt in range(1, attempts + 1):
        again = {} if attempt == 1 else {"attempt": attempt}
        asked = [replace(requests[n], variant={**requests[n].variant, **again}) for n in waiting]
        for number, request, outcome in zip(waiting, asked, client.complete(asked), strict=True):
            outcomes[number].append(outcome)
            found[number] = (request, _read(outcome, read))
        waiting = [n for n in waiting if isinstance(found[n][1], Missing)]
        if not waiting:
            break
    return [(found[n][0], outcomes[n], found[n][1]) for n in range(len(requests))]


def is_cut(answer: Answer) -> bool:
    """Whether an answer ended because it reached its most tokens."""
    return answer.finish_reason in CUT


def _read(outcome: Outcome, read: Callable[[Answer], Read]) -> Read | Missing:
    if isinstance(outcome, Failure):
        return Missing("failed", outcome.reason)
    if outcome.problem:
        return Missing("failed", outcome.problem)
    if outcome.refusal:
        return Missing("refused", outcome.refusal)
    if outcome.finish_reason == "content_filter":
        return Missing("refused", "the endpoint's content filter")
    text = outcome.content or ""
    cut = is_cut(outcome)
    if cut and says_nothing(text):
        return Missing("truncated", text[-500:] or "no text within the tokens of an answer")
    try:
        return read(outcome)
    except ValueError as error:
        return Missing("truncated" if cut else "unparsable", str(error))


def _sum_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
