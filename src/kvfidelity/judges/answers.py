"""Reads what a model says: a score or a choice. An answer that contradicts itself says nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from kvfidelity.judges.json_text import ContradictionError, leading_json, without_surrogates
from kvfidelity.judges.rubric import CHOICES, Rubric

#: What ends a model's reasoning where it is part of its answer; the answer follows.
REASONING_END = re.compile(
    r"</(think|thinking|thought|reasoning)>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)
REASONING_START = re.compile(r"\s*<(think|thinking|thought|reasoning)>", re.IGNORECASE)
#: A brace that begins a JSON object, not one of a sentence.
OBJECT_START = re.compile(r'\{\s*"')
WHOLE_NUMBER = re.compile(r"\s*(10|[1-9])(\.0+)?\s*", re.ASCII)


def score_in(answer: str, rubric: Rubric) -> tuple[int, str]:
    """The verdict's score and its reason.

    The score may be written as `8`, `8.0` or `"8"`, and its key in any case. The object may stand
    after reasoning, between other words, or several times if all say the same.

    Raises:
        ValueError: no JSON object, a missing key, two different scores, or a score other than a
            whole number from 1 to 10.
    """
    content = _object_with(answer, rubric.scores)
    scores = {}
    for name in rubric.scores:
        scores[name] = _whole_number(content.get(name))
        if scores[name] is None:
            given = repr(content.get(name))[:100]
            raise ValueError(f"{name} is {given}, not a whole number from 1 to 10")
    last = scores[rubric.scores[-1]]
    assert last is not None
    return last, _reason(content | scores)


def choice_in(answer: str) -> tuple[str, str]:
    """Which of two replies is better, one of CHOICES, and the reason.

    Raises:
        ValueError: no JSON object, two different choices, or another choice.
    """
    content = _object_with(answer, ("better",))
    choice = content.get("better")
    found = choice.strip().lower() if isinstance(choice, str) else choice
    if found not in CHOICES:
        raise ValueError(f"better is {repr(choice)[:100]}, not one of {', '.join(CHOICES)}")
    return str(found), _reason(content | {"better": found})


def says_nothing(answer: str) -> bool:
    """Whether an answer ends before it comes to its JSON object."""
    return "{" not in _after_reasoning(answer)


def _object_with(answer: str, names: Sequence[str]) -> dict[str, Any]:
    """The object of an answer that has one of the keys; keys in lower case."""
    text = _after_reasoning(answer)
    found: list[dict[str, Any]] = []
    other: list[str] = []
    end = 0
    for content, start, stop in _objects(text):
        other.append(text[end:start])
        end = stop
        lower = _lower_keys(content, names)
        if any(name in lower for name in names):
            found.append(lower)
    other.append(text[end:])
    if not found:
        raise ValueError(f"no JSON object with {' and '.join(names)} in {answer[-200:]!r}")
    for name in names:
        values = [_number_or_value(content.get(name)) for content in found]
        values += _stated(name, " ".join(other))
        if any(value != values[0] for value in values):
            raise ValueError(f"it says two things of {name}: {answer[-200:]!r}")
    return found[-1]


def _stated(name: str, text: str) -> Iterator[Any]:
    """What the text outside of the objects says of a key; None for half an object."""
    for found in re.finditer(rf"(\"?)\b{name}\b\"?\s*[:=]\s*\"?(\d+(?:\.\d+)?)?", text, re.I):
        if found[2]:
            yield _number_or_value(found[2])
        elif found[1]:
            yield None


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The JSON objects in a text, outermost ones only, with where each begins and ends."""
    position = text.find("{")
    while position >= 0:
        try:
            content, end = leading_json(text, position)
        except ContradictionError:
            raise
        except ValueError as error:
            if OBJECT_START.match(text, position):
                raise ValueError(f"a JSON object is incomplete or broken: {error}") from None
            end = position + 1
        else:
            yield content, position, end
        position = text.find("{", end)


def _lower_keys(content: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.strip().lower() if key.strip().lower() in (*names, "reason") else key
        if name in found and _number_or_value(found[name]) != _number_or_value(value):
            raise ValueError(f"{name} is given as {found[name]!r} and as {value!r}"[:200])
        found[name] = value
    return found


def _after_reasoning(answer: str) -> str:
    ends = list(REASONING_END.finditer(answer))
    if ends:
        return answer[ends[-1].end() :]
    return "" if REASONING_START.match(answer) else answer


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str):
        found = WHOLE_NUMBER.fullmatch(value)
        return int(found[1]) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 1 <= value <= 10 and value == int(value) else None


def _number_or_value(value: Any) -> Any:
    number = _whole_number(value)
    return value if number is None else number


def _reason(content: dict[str, Any]) -> str:
    try:
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    except RecursionError:  # read by a parser that goes deeper than the writer
        text = "a reason that is nested too deeply"
    return without_surrogates(text)
