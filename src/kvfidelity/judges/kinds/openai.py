"""Asks a model behind an OpenAI-compatible endpoint.

This file declares the options. The work is done by `judges.llm` (scores) and `judges.pairwise`
(comparisons), which are imported when they are used: they import the `openai` client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from kvfidelity.judges.address import url_fault, variable_fault
from kvfidelity.judges.base import Judge, Row
from kvfidelity.judges.presets import PRESET, REASONING_TOKENS
from kvfidelity.judges.requests import TOKENS_PARAMETERS
from kvfidelity.judges.rubric import AnswerFormat, Rubric
from kvfidelity.judges.verdict import Verdict
from kvfidelity.options import option, option_fields

if TYPE_CHECKING:
    from kvfidelity.judges.comparison import Comparison, Pair
    from kvfidelity.judges.llm import LLMJudge
    from kvfidelity.judges.pairwise import PairwiseJudge

#: More than any model answers.
MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class OpenAIJudge(Judge):
    """Asks a model behind an OpenAI-compatible endpoint for a score or a comparison."""

    kind: ClassVar[str] = "openai"
    compares: ClassVar[bool] = True
    needs_network: ClassVar[bool] = True
    rules: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "if": {"properties": {"api": {"const": "azure"}}, "required": ["api"]},
            "then": {"required": ["base_url", "api_version"]},
        },
        {
            "if": {"properties": {"temperature": {"type": "string"}}, "required": ["temperature"]},
            "then": {"properties": {"temperature": {"const": PRESET}}},
        },
    )

    model: str = option(doc="model name; with `api: azure` the deployment's name")
    api: str = option(
        "openai", doc="`openai` stands for every compatible endpoint", choices=("openai", "azure")
    )
    api_version: str | None = option(None, doc="with `api: azure`, such as 2024-10-21")
    base_url: str | None = option(
        None,
        doc="endpoint, with `api: azure` the resource's address; null is OpenAI's own",
        check=url_fault,
    )
    api_key_env: str | None = option(
        "OPENAI_API_KEY",
        doc="environment variable that holds the key; null for an endpoint that needs no key",
        check=variable_fault,
    )
    answer_format: str = option(
        "schema",
        doc="strict JSON schema, or what an endpoint without schemas is asked for",
        choices=tuple(form.value for form in AnswerFormat),
    )
    max_tokens: int = option(
        400,
        doc="tokens of an answer at most, without those of reasoning",
        low=1,
        high=MOST_TOKENS,
    )
    tokens_parameter: str = option(
        "max_completion_tokens",
        doc="name under which the endpoint takes the most tokens of an answer",
        choices=TOKENS_PARAMETERS,
    )
    temperature: float | str | None = option(
        PRESET,
        doc="`preset` is 0, or none for families that refuse one (gpt-5, o-series); null leaves it "
        "out",
        low=0,
        high=2,
    )
    reasoning_effort: str | None = option(
        None, doc="how much the model reasons, such as low; null leaves it out"
    )
    reasoning_tokens: int | None = option(
        None,
        doc="tokens of reasoning at most, on top of `max_tokens`; null is the family's preset: "
        f"{REASONING_TOKENS} for models that reason, else 0",
        low=0,
        high=MOST_TOKENS,
    )
    context_tokens: int | None = option(
        None,
        doc="tokens of the model's context; the history shown is cut to fit, whole messages from "
        "the middle, at the same place for every policy; null cuts nothing",
        low=1,
    )
    reply_tokens: int | None = option(
        None,
        doc="tokens of a judged reply at most, for which `context_tokens` keeps room; null is "
        "`session.max_new_tokens`",
        low=0,
    )
    attempts: int = option(
        1,
        doc="maximum tries per verdict; raise it and rerun to retry only the verdicts that failed, "
        "were refused, truncated or unparsable",
        low=1,
        high=100,
    )
    batch: bool = option(
        False,
        doc="ask through the Batch API, for half the price within a day",
        changes_verdict=False,
    )

    def judge(self, rows: Sequence[Row]) -> list[Verdict]:
        return self._scorer.judge(rows)

    def judge_runs(self, runs: Sequence[Sequence[Row]]) -> list[list[Verdict]]:
        return self._scorer.judge_runs(runs)

    def judge_each(
        self, replies: Sequence[tuple[Row, Sequence[Row]]], variants: Sequence[Mapping[str, int]]
    ) -> list[Verdict]:
        return self._scorer.judge_each(replies, variants)

    def compare(
        self, runs: Sequence[tuple[Sequence[Row], Sequence[Row]]]
    ) -> list[list[Comparison]]:
        return self._comparer.compare(runs)

    def compare_each(self, pairs: Sequence[Pair]) -> list[Comparison]:
        return self._comparer.compare_each(pairs)

    @cached_property
    def _scorer(self) -> LLMJudge:
        from kvfidelity.judges.llm import LLMJudge

        assert self.client is not None
        return LLMJudge(self.name, self._entry, Rubric.read(self.rubric), self.client)

    @cached_property
    def _comparer(self) -> PairwiseJudge:
        from kvfidelity.judges.pairwise import PairwiseJudge

        assert self.client is not None
        return PairwiseJudge(self.name, self._entry, Rubric.read(self.rubric), self.client)

    @property
    def _entry(self) -> dict[str, Any]:
        options = {item.name: getattr(self, item.name) for item in option_fields(self)}
        return {"kind": self.kind, **options}


def with_defaults(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A config entry of this kind with the defaults of the options that it leaves out."""
    defaults = {item.name: item.default for item in option_fields(OpenAIJudge)}
    del defaults["model"]
    return {"kind": OpenAIJudge.kind, **defaults, **entry}
