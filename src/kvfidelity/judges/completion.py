"""Reads the body of a chat completion. What cannot be read is said; the answer is kept anyway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kvfidelity.judges.requests import Answer, Request

#: Characters of an answer that are kept: its beginning, and its end, where the verdict is.
HEAD, TAIL = 2_000, 30_000
#: Types of the parts of a message that are its text; some endpoints name none.
TEXT_PARTS = (None, "text", "output_text")
#: Usage beyond a token per byte of the prompt, or a multiple of the tokens that were allowed, plus
#: what an endpoint may add of its own, is not believed.
PROMPT_FACTOR, ANSWER_FACTOR, ADDED_TOKENS = 3, 10, 10_000
#: The same where the request is not known any more.
MOST_TOKENS = 10_000_000
#: Dollars for prompt and answer tokens.
Usd = Callable[[int, int], float]


def read_completion(body: Any, usd: Usd | None, request: Request | None = None) -> Answer:
    """The answer in a body of JSON types, whatever the body is.

    Args:
        usd: None if prices are unknown.
        request: what was asked, to tell absurd usage; None if it is not known any more.

    Returns:
        An answer. `problem` says why it has no text, if the body is no chat completion. Usage that
        is missing, negative or absurd is None, and so are its dollars.
    """
    content = refusal = finish = problem = None
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = _text(message), message.get("refusal")
        finish = choice.get("finish_reason")
        # One was asked for; of several that do not say the same, none counts.
        others = [_text(other["message"]) for other in body["choices"][1:]]
        content = "\n".join(text for text in (content, *others) if text) or content
    except (KeyError, IndexError, TypeError, AttributeError):
        problem = "no chat completion came back"
    prompt, answered, reasoning = _usage(body, request, bool(content))
    return Answer(
        content=shortened(content),
        refusal=shortened(refusal) if isinstance(refusal, str) and refusal else None,
        finish_reason=finish[:100] if isinstance(finish, str) else None,
        prompt_tokens=prompt,
        completion_tokens=answered,
        usd=None if usd is None or prompt is None or answered is None else usd(prompt, answered),
        reasoning_tokens=reasoning,
        problem=problem,
    )


def unreadable_completion(problem: str) -> Answer:
    """The answer in a body that is not JSON."""
    return Answer(None, None, None, None, None, problem=problem)


def refused_by_filter(reason: str, *, charged: bool = False) -> Answer:
    """The answer that an endpoint's filter gives, which costs nothing unless it was charged."""
    said = f"the endpoint's filter: {reason}"
    if charged:
        return Answer(None, said, "content_filter", None, None)
    return Answer(None, said, "content_filter", 0, 0, 0.0)


def shortened(text: str | None) -> str | None:
    """A text without its middle, if it is too long to keep."""
    if text is None or len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n[{len(text) - HEAD - TAIL} characters are not kept]\n{text[-TAIL:]}"


def _text(message: Any) -> str | None:
    """The message's text: as it is or in parts, and after it what a tool is called with."""
    texts = list(_texts(message.get("content")))
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in _objects(calls)]
    functions.append(message.get("function_call"))
    arguments = [_arguments(function) for function in _objects(functions)]
    given = ["".join(texts), *(text for text in arguments if text is not None)]
    if len(given) == 1 and not texts:
        return None
    return "\n".join(text for text in given if text.strip()) or given[-1]


def _objects(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _arguments(function: Mapping[str, Any]) -> str | None:
    """A tool's arguments, which most endpoints give as text, some as an object."""
    given = function.get("arguments")
    if isinstance(given, dict):
        return json.dumps(given, ensure_ascii=False)
    return given if isinstance(given, str) else None


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    if isinstance(content, dict):  # parsed already
        yield json.dumps(content, ensure_ascii=False)
    for part in content if isinstance(content, list) else ():
        # Other kinds of parts are what the model thought, or nothing to read.
        if isinstance(part, dict) and part.get("type") not in TEXT_PARTS:
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text


def _usage(
    body: Any, request: Request | None, has_text: bool
) -> tuple[int | None, int | None, int | None]:
    """Tokens of the prompt, of the answer with what it reasoned, and of that reasoning."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None, None, None
    most_prompt = most_answer = MOST_TOKENS
    if request is not None:
        most_prompt = PROMPT_FACTOR * request.prompt_tokens + ADDED_TOKENS
        most_answer = ANSWER_FACTOR * request.answer_tokens + ADDED_TOKENS
    prompt = _count(usage.get("prompt_tokens"), 1, most_prompt)
    answered = _count(usage.get("completion_tokens"), int(has_text), most_answer)
    details = usage.get("completion_tokens_details")
    given = details.get("reasoning_tokens") if isinstance(details, dict) else None
    reasoning = _count(given, 0, most_answer)
    # Most endpoints count reasoning as part of the answer; where the total shows that one does not,
    # it is charged on top.
    if prompt is None or answered is None or not reasoning:
        return prompt, answered, reasoning
    if usage.get("total_tokens") == prompt + answered + reasoning:
        answered += reasoning
    return prompt, answered, reasoning


def _count(value: Any, low: int, high: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        return None
    return value
