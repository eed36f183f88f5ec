"""What a judge model is asked: a rubric's text, the material between marks, the answer's form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCORES = {"grounded": ("coherence", "faithfulness", "relevance", "overall")}


@dataclass(frozen=True)
class Rubric:
    """A rubric file: `name` is its file name, the last of `scores` is the verdict."""

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
        """Strict JSON schema of an answer: the reason comes before the scores."""
        properties: dict[str, Any] = {"reason": {"type": "string"}}
        properties |= {name: {"type": "integer"} for name in self.scores}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def messages(
        self, row: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, str]]:
        """The request for one turn.

        Args:
            row: `prompt`, `reply`, `reference`.
            history: earlier rows of the run with `prompt` and `said`, what entered the cache.
        """
        parts = [("message", row["prompt"]), ("reply", row["reply"])]
        if self.name == "grounded":
            said = "\n\n".join(f"user: {h['prompt']}\n\nassistant: {h['said']}" for h in history)
            parts = [("conversation", said), parts[0], ("reference", row["reference"]), parts[1]]
        # A mark that the material cannot contain by design: it is a digest of the material.
        mark = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        body = "\n\n".join(f"<{name} {mark}>\n{text}\n</{name} {mark}>" for name, text in parts)
        return [{"role": "system", "content": self.text}, {"role": "user", "content": body}]


def score_in(answer: str, rubric: Rubric) -> tuple[int, str]:
    """The verdict's score and its reason.

    Raises:
        ValueError: no JSON object, a missing key, or a score that is no whole number from 1 to 10.
    """
    content = json.loads(answer)
    if not isinstance(content, dict):
        raise ValueError("the answer is no JSON object")
    for name in rubric.scores:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10:
            raise ValueError(f"{name} is {value!r}, not a whole number from 1 to 10")
    return content[rubric.scores[-1]], json.dumps(content, ensure_ascii=False, sort_keys=True)
