"""Reads what a model says: a score or a choice. An answer that contradicts itself says nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from kvfidelity.judges.json_text import ContradictionError, leading_json, without_surrogates
from kvfidelity.judges.rubric import CHOICES, Rubric

_REASONING = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|analysis|reflection|scratchpad)"
#: What ends a model's reasoning where it is part of its answer; the answer follows.
REASONING_END = re.compile(
    rf"[<\[◁]/{_REASONING}\s*[>\]▷]|<\|(?:end_of_thought|end_thinking)\|>|<channel\|>"
    r"|<\|channel\|>\s*final\b[^{}]{0,80}?<\|message\|>",
    re.IGNORECASE,
)
REASONING_START = re.compile(
    rf"[<\[◁]{_REASONING}\s*[>\]▷]|<\|(?:begin_of_thought|start_thinking)\|>"
    r"|<\|channel\|?>\s*(?:analysis|commentary|thought)",
    re.IGNORECASE,
)
#: What may stand around an answer's object and is no word: fences, tags, brackets, emphasis.
FRAME = re.compile(
    r"(?:\s|\ufeff|```\w*+|</?[a-z_]{1,20}>|<\|[^{}|]{1,60}\|>|[\[\]*_>#-])*+", re.IGNORECASE
)
#: A brace that begins a JSON object, not one of a sentence.
OBJECT_START = re.compile(r'\{\s*"')
WHOLE_NUMBER = re.compile(r"\s*(10|[1-9])(\.0+)?\s*", re.ASCII)


def score_in(answer: str, rubric: Rubric, *, cut: bool = False) -> tuple[int, str]:
    """The verdict's score and its reason.

    The score may be written as `8`, `8.0` or `"8"`, and its key in any case. The object may stand
    after reasoning, several times if all say the same, or after other words, which it must end: an
    object within words may be a quotation of the reply that is judged.

    Args:
        cut: the answer reached its most tokens; then nothing but the object may stand in it, for
            what would have followed is unknown.

    Raises:
        ValueError: no JSON object, a missing key, two different scores, words after the object, or
            a score other than a whole number from 1 to 10.
    """
    content = _object_with(answer, rubric.scores, cut)
    scores = {}
    for name in rubric.scores:
        scores[name] = _whole_number(content.get(name))
        if scores[name] is None:
            given = repr(content.get(name))[:100]
            raise ValueError(f"{name} is {given}, not a whole number from 1 to 10")
    last = scores[rubric.scores[-1]]
    assert last is not None
    return last, _reason(content | scores)


def choice_in(answer: str, *, cut: bool = False) -> tuple[str, str]:
    """Which of two replies is better, one of CHOICES, and the reason; see `score_in`.

    Raises:
        ValueError: no JSON object, two different choices, words after the object, or another
            choice.
    """
    content = _object_with(answer, ("better",), cut)
    choice = content.get("better")
    found = choice.strip().lower() if isinstance(choice, str) else choice
    if found not in CHOICES:
        raise ValueError(f"better is {repr(choice)[:100]}, not one of {', '.join(CHOICES)}")
    return str(found), _reason(content | {"better": found})


def says_nothing(answer: str) -> bool:
    """Whether an answer ends before it comes to its JSON object."""
    return "{" not in _after_reasoning(answer)


def _object_with(answer: str, names: Sequence[str], cut: bool) -> dict[str, Any]:
    """The object of an answer that has one of the keys; keys in lower case."""
    text = _after_reasoning(answer)
    found: list[dict[str, Any]] = []
    between: list[str] = []
    before, after, end = "", "", 0
    for content, start, stop in _objects(text):
        between.append(text[end:start])
        end = stop
        lower = _lower_keys(content, names)
        if any(name in lower for name in names):
            found.append(lower)
            before, after = between[-1], text[stop:]
    between.append(text[end:])
    if not found:
        raise ValueError(f"no JSON object with {' and '.join(names)} in {answer[-200:]!r}")
    for name in names:
        values = [_comparable(content.get(name)) for content in found]
        values += _stated(name, "\n".join(between), alone=len(names) == 1)
        if any(value != values[0] for value in values):
            raise ValueError(f"it says two things of {name}: {answer[-200:]!r}")
    if not FRAME.fullmatch(after):
        raise ValueError(f"words follow its JSON object, a quotation maybe: {answer[-200:]!r}")
    if cut and not all(map(FRAME.fullmatch, between)):
        raise ValueError(f"it is cut off among words: {answer[-200:]!r}")
    if "reason" not in found[-1] and not FRAME.fullmatch(before.rsplit("\n", 1)[-1]):
        raise ValueError(f"its JSON object ends a sentence, a quotation maybe: {answer[-200:]!r}")
    return found[-1]


def _stated(name: str, text: str, *, alone: bool) -> Iterator[Any]:
    """What the text outside of the objects says of a key; None for half an object.

    Args:
        alone: the key is the only one, so that a mark out of ten is about it.
    """
    around = r"[\s\"'`*_]*+"
    value = rf"(?<![\w.])(\d+(?:\.\d+)?|{'|'.join(CHOICES)})\b"
    pattern = rf"(?<![a-z])([\"']?){name}{around}(?:[:=]|\bis\b){around}(?:{value})?"
    for found in re.finditer(pattern, text, re.I):
        if found[2]:
            yield _comparable(found[2])
        elif found[1]:
            yield None
    if alone:
        for found in re.finditer(r"(?<![\d.])(\d+(?:\.\d+)?)\s*(?:/|out of)\s*10\b", text, re.I):
            yield _comparable(found[1])


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
        if name in found and _comparable(found[name]) != _comparable(value):
            raise ValueError(f"{name} is given as {found[name]!r} and as {value!r}"[:200])
        found[name] = value
    return found


def _after_reasoning(answer: str) -> str:
    """The answer without its reasoning; nothing of one whose reasoning does not end."""
    if _is_object(answer):
        return answer  # tags in its texts are no tags
    ends = list(REASONING_END.finditer(answer))
    rest = answer[ends[-1].end() :] if ends else answer
    return "" if REASONING_START.search(rest) else rest


def _is_object(answer: str) -> bool:
    start = answer.find("{")
    if start < 0 or not FRAME.fullmatch(answer, 0, start) or REASONING_START.search(answer[:start]):
        return False
    try:
        _, end = leading_json(answer, start)
    except ValueError:
        return False
    return FRAME.fullmatch(answer, end) is not None


def _whole_number(value: Any) -> int | None:
    if isinstance(value, str):
        found = WHOLE_NUMBER.fullmatch(value)
        return int(found[1]) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 1 <= value <= 10 and value == int(value) else None


def _comparable(value: Any) -> Any:
    number = _whole_number(value)
    if number is None:
        return value.strip().lower() if isinstance(value, str) else value
    return number


def _reason(content: dict[str, Any]) -> str:
    try:
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    except RecursionError:  # read by a parser that goes deeper than the writer
        text = "a reason that is nested too deeply"
    return without_surrogates(text)
