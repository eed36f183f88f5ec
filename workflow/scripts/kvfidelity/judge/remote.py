"""A judge behind an OpenAI-compatible endpoint: chat completions with a strict JSON schema."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from kvfidelity.errors import UserError
from kvfidelity.judge.rubric import Rubric, score_in
from kvfidelity.judge.store import AnswerStore
from kvfidelity.judge.verdict import Verdict

KIND = "openai"
#: The client retries 408, 409, 429 and 5xx itself, with backoff, jitter and `retry-after`.
RETRIES = 8


class RemoteJudge:
    """Asks a model for verdicts.

    Args:
        name: of the judge in the config. entry: its config entry. rubric: what is asked.
        store: answers that were paid for.

    Raises:
        UserError: the environment variable that shall hold the key is not set.
    """

    def __init__(
        self, name: str, entry: Mapping[str, Any], rubric: Rubric, store: AnswerStore
    ) -> None:
        key = os.environ.get(entry["key_env"])
        if not key:
            raise UserError(
                f"judge {name} needs its key in the environment variable {entry['key_env']}: set "
                "it, or take the judge out of `judging`"
            )
        self.name, self.entry, self.rubric, self.store = name, entry, rubric, store
        self._client = openai.OpenAI(
            api_key=key, base_url=entry.get("base_url"), max_retries=RETRIES, timeout=120
        )

    def judge(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts on all turns of one run, in order; several requests are in flight at once."""
        with ThreadPoolExecutor(self.entry.get("concurrency", 8)) as pool:
            jobs = [pool.submit(self._one, row, rows[:place]) for place, row in enumerate(rows)]
            return [job.result() for job in jobs]

    def _one(self, row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Verdict:
        if row["reply"] is None:
            reason = f"no own reply ({row['finish_reason']})"
            return self._verdict(row, None, "no_reply", reason, {})
        request = {
            "model": self.entry["model"],
            "messages": self.rubric.messages(row, history),
            "temperature": 0,
            "max_completion_tokens": self.entry.get("max_tokens", 400),
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "verdict",
                    "strict": True,
                    "schema": self.rubric.answer_schema,
                },
            },
        }
        key = AnswerStore.key(request)
        answer = self.store.get(key)
        if answer is None:
            try:
                answer = _answer(self._client.chat.completions.create(**request))
            except openai.OpenAIError as error:
                reason = f"{type(error).__name__}: {str(error)[:300]}"
                return self._verdict(row, None, "failed", reason, {})
            self.store.put(key, answer)
        return self._read(row, answer)

    def _read(self, row: Mapping[str, Any], answer: Mapping[str, Any]) -> Verdict:
        if answer["refusal"]:
            return self._verdict(row, None, "refused", answer["refusal"], answer)
        if answer["finish_reason"] == "length":
            return self._verdict(row, None, "truncated", answer["content"], answer)
        try:
            score, reason = score_in(answer["content"] or "", self.rubric)
        except ValueError as error:
            return self._verdict(row, None, "unparsable", str(error), answer)
        return self._verdict(row, score, "ok", reason, answer)

    def _verdict(
        self,
        row: Mapping[str, Any],
        score: int | None,
        status: str,
        reason: str | None,
        answer: Mapping[str, Any],
    ) -> Verdict:
        return Verdict(
            turn=row["turn"],
            judge=self.name,
            judge_kind=KIND,
            judge_model=self.entry["model"],
            rubric=self.rubric.name,
            score=score,
            status=status,
            reason=reason,
            prompt_tokens=answer.get("prompt_tokens"),
            completion_tokens=answer.get("completion_tokens"),
        )


def _answer(completion: Any) -> dict[str, Any]:
    choice, usage = completion.choices[0], completion.usage
    return {
        "content": choice.message.content,
        "refusal": choice.message.refusal,
        "finish_reason": choice.finish_reason,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
    }
