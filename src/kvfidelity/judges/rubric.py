"""The text of a request: the rubric, the material between delimiters, the answer's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from kvfidelity.judges.history import conversation

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
            # Every endpoint with schemas enforces an enumeration; not all of them enforce bounds.
            score = {"type": "integer", "enum": list(range(1, 11))}
            properties |= dict.fromkeys(self.scores, score)
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
        form: AnswerFormat = AnswerFormat.SCHEMA,
        **parameters: Any,
    ) -> dict[str, Any]:
        """A chat completion's body.

        Args:
            parts: named texts to judge, in the order in which they are shown.
            form: how the answer's format is requested.
            parameters: further ones of the endpoint, such as `temperature`.
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
            **parameters,
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
    rubric: Rubric,
    row: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    cut: tuple[int, int] = (0, 0),
) -> list[tuple[str, str]]:
    """What a rubric shows before the reply: conversation, message and reference.

    Args:
        row: `prompt` and `reference`; a reference of None is not shown. If needles were put into
            the prompt, `message` is the text without them.
        history: earlier turns with `prompt` and `fed_reply`, what entered the cache.
        cut: messages of the history that are left out, see `history.messages_cut`.
    """
    parts = [("message", message_of(row))]
    if rubric.name in WITH_HISTORY:
        parts.insert(0, ("conversation", conversation(history, cut)))
        if row["reference"] is not None and rubric.name != PAIRWISE:
            parts.append(("reference", str(row["reference"])))
    return parts


def message_of(row: Mapping[str, Any]) -> str:
    """The message that a reply is judged against: without needles, which ask for no answer."""
    return str(row.get("message") or row["prompt"])


def delimited(parts: Sequence[tuple[str, str]]) -> str:
    """Texts between delimiters that hold a digest of the texts, so no text can contain them."""
    delimiter = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return "\n\n".join(
        f"<{name} {delimiter}>\n{text}\n</{name} {delimiter}>" for name, text in parts
    )


def _type_text(schema: Mapping[str, Any]) -> str:
    if schema["type"] == "integer":
        return "whole number from 1 to 10"
    return " or ".join(f'"{choice}"' for choice in schema.get("enum", ())) or "text"
