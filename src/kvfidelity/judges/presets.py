"""What families of models accept, by the names under which they are sold or served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The value of `temperature` that stands for the family's.
PRESET = "preset"
#: Tokens for reasoning, of which a verdict needs few, and some models use thousands.
REASONING_TOKENS = 4000


@dataclass(frozen=True)
class Preset:
    """temperature: None leaves it out. reasoning_tokens: see the option of that name."""

    temperature: float | None
    reasoning_tokens: int


#: Before each pattern may stand a provider, as in `openai/gpt-5`.
FAMILIES = (
    (r"gpt-5[^/]*chat|chatgpt", Preset(None, 0)),
    (r"o\d|gpt-5|codex", Preset(None, REASONING_TOKENS)),
    (r"gpt-oss|deepseek-r|qwq|magistral|[^/]*(reasoner|reasoning|thinking)", Preset(0, 4000)),
)
OTHERS = Preset(0, 0)


def preset_of(model: str) -> Preset:
    """The preset of a model's family."""
    for pattern, preset in FAMILIES:
        if re.match(rf"(.*/)?({pattern})", model.lower()):
            return preset
    return OTHERS


def temperature_of(entry: Mapping[str, Any]) -> float | None:
    """The temperature that a judge's entry asks for; None leaves it out."""
    given = entry["temperature"]
    return preset_of(entry["model"]).temperature if given == PRESET else given


def answer_tokens_of(entry: Mapping[str, Any]) -> int:
    """Tokens that an answer may have, with those of its reasoning."""
    given = entry["reasoning_tokens"]
    reasoning = preset_of(entry["model"]).reasoning_tokens if given is None else given
    return int(entry["max_tokens"]) + int(reasoning)
