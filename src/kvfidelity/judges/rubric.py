"""The text of a request: the rubric, the material between delimiters, the answer's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

SCORES = {"grounded": ("coherence", "faithfulness", "relevance", "overall")}
PAIRWISE = "pairwise"
CHOICES = ("first", "second", "tie")
#: Rubrics that show the conversation before the message.
WITH_HISTORY = ("grounded", PAIRWISE)


class AnswerFormat(StrEnum):
    """How the answer's format is requested."""

    SCHEMA = "schema"
    """A strict JSON schema, which the endpoint enforces."""
    OBJECT = "object"
    """Described in words; the endpoint enforces that it is a JSON object."""
    TEXT = "text"
    """Described in words only; the JSON object is searched for in the answer."""


@dataclass(frozen=True)
class Rubric:
    """A rubric file. `name`: its file name without ending. The last of `scores` is the verdict."""

    name: str
    text: str
    scores: tuple[str, ...]

    @classmethod
    def read(cls, file: Path) -> Rubric:
        """Read a rubric."""
        text = file.read_text(encoding="utf-8")
        return cls(file.stem, text, SCORES.get(file.stem, ("score",)))

    @property
    def answer_schema(self) -> dict[str, Any]:
        """Strict JSON schema of an answer; the reason comes before the scores."""
        properties: dict[str, Any] = {"reason": {"type": "string"}}
        if self.name == PAIRWISE:
            properties["better"] = {"type": "string", "enum": list(CHOICES)}
        else:
            properties |= {name: {"type": "integer"} for name in self.scores}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def body(
        self,
        parts: Sequence[tuple[str, str]],
        model: str,
        max_tokens: int,
        form: AnswerFormat = AnswerFormat.SCHEMA,
    ) -> dict[str, Any]:
        """A chat completion's body.

        Args:
            parts: named texts to judge, in the order in which they are shown.
            max_tokens: of the answer.
            form: how the answer's format is requested.
        """
        system = self.text
        if form != AnswerFormat.SCHEMA:
            fields = ", ".join(f'"{name}": {_type_text(s)}' for name, s in self._properties())
            system += f"\nAnswer with one JSON object and nothing else: {{{fields}}}\n"
        body: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": delimited(parts)},
            ],
            "temperature": 0,
            "max_completion_tokens": max_tokens,
        }
        if form == AnswerFormat.SCHEMA:
            json_schema = {"name": "verdict", "strict": True, "schema": self.answer_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        elif form == AnswerFormat.OBJECT:
            body["response_format"] = {"type": "json_object"}
        return body

    def _properties(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self.answer_schema["properties"].items())


def rubric_parts(
    rubric: Rubric, row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What a rubric shows before the reply: conversation, message and reference.

    Args:
        row: `prompt` and `reference`; a reference of None is not shown.
        history: earlier turns with `prompt` and `fed_reply`, what entered the cache.
    """
    parts = [("message", str(row["prompt"]))]
    if rubric.name in WITH_HISTORY:
        conversation = "\n\n".join(
            f"user: {h['prompt']}\n\nassistant: {h['fed_reply']}" for h in history
        )
        parts.insert(0, ("conversation", conversation))
        if row["reference"] is not None and rubric.name != PAIRWISE:
            parts.append(("reference", str(row["reference"])))
    return parts


def delimited(parts: Sequence[tuple[str, str]]) -> str:
    """Texts between delimiters that hold a digest of the texts, so no text can contain them."""
    delimiter = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return "\n\n".join(
        f"<{name} {delimiter}>\n{text}\n</{name} {delimiter}>" for name, text in parts
    )


def json_object_in(answer: str) -> dict[str, Any]:
    """The JSON object in an answer.

    Raises:
        ValueError: there is no JSON object.
    """
    start, stop = answer.find("{"), answer.rfind("}")
    if start < 0 or stop < start:
        raise ValueError(f"no JSON object in {answer[:200]!r}")
    content = json.loads(answer[start : stop + 1])
    if not isinstance(content, dict):
        raise ValueError("the answer is not a JSON object")
    return content


def score_in(answer: str, rubric: Rubric) -> tuple[int, str]:
    """The verdict's score and its reason.

    Raises:
        ValueError: no JSON object, a missing key, or a score other than a whole number 1 to 10.
    """
    content = json_object_in(answer)
    for name in rubric.scores:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10:
            raise ValueError(f"{name} is {value!r}, not a whole number from 1 to 10")
    return content[rubric.scores[-1]], json.dumps(content, ensure_ascii=False, sort_keys=True)


def choice_in(answer: str) -> tuple[str, str]:
    """Which of two replies is better, one of CHOICES, and the reason.

    Raises:
        ValueError: no JSON object, or another choice.
    """
    content = json_object_in(answer)
    choice = content.get("better")
    if choice not in CHOICES:
        raise ValueError(f"better is {choice!r}, not one of {', '.join(CHOICES)}")
    return str(choice), json.dumps(content, ensure_ascii=False, sort_keys=True)


def _type_text(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f'"{choice}"' for choice in schema["enum"])
    return "whole number from 1 to 10" if schema["type"] == "integer" else "text"
