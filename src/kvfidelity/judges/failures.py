"""What an endpoint's answer with an error means: what to do, whether it was charged, and whether
every other request would get the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvfidelity.judges.json_text import parse_json

KEY = "set the environment variable that `api_key_env` names to a key that may use it"
CREDIT = "the account has no credit left; answers so far are kept, run again to continue"
TOO_LARGE = (
    "a request is larger than the endpoint takes; set `context_tokens`, which cuts the history to "
    "fit, or lower `max_tokens`"
)
PAGE = "a web page came back, not an answer; correct `base_url` (most end in /v1)"
#: Words of an empty account, in codes, types and messages, also where a gateway passes them on.
NO_CREDIT = re.compile(
    r"insufficient[_ ](quota|credit|balance|fund)|billing[_ ](not[_ ]active|hard[_ ]limit)"
    r"|exceeded your current quota|credit balance is too low|payment required",
    re.IGNORECASE,
)
REQUEST_TOO_LARGE = re.compile(r"request[_ ](is )?too[_ ]large|payload too large", re.IGNORECASE)
TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|context (length|window|size)|too many tokens"
    r"|prompt is too long",
    re.IGNORECASE,
)
FILTERED = re.compile(
    r"content[_ ]filter|content[_ ]policy|content management policy|responsibleai|moderation"
    r"|flagged",
    re.IGNORECASE,
)
UNKNOWN_MODEL = re.compile(
    r"model_not_found|unknown[_ ]model|invalid[_ ]model|no such model|deploymentnotfound"
    r"|model\b.{0,80}\b(not exist|not found|unknown|not available)"
    r"|not a valid model",
    re.IGNORECASE | re.DOTALL,
)
NOT_ACCEPTED = re.compile(
    r"unsupported|not supported|n't support|not support|unrecognized|unknown (parameter|field|name)"
    r"|unknown_parameter|extra (field|input)|extra_forbidden|unexpected|not permitted|not allowed"
    r"|not available|invalid",
    re.IGNORECASE,
)
#: Parameters of a request by the words that name them, and what to do where one is not accepted.
PARAMETERS = (
    ("temperature", "set `temperature: null`, which leaves it out"),
    ("reasoning_effort", "correct `reasoning_effort`, or set it to null, which leaves it out"),
    (
        "max_completion_tokens",
        "set `tokens_parameter: max_tokens` (or `max_completion_tokens`, where that is the one "
        "that is wanted)",
    ),
    ("response_format", "set `answer_format: object` or `text` for this judge"),
    ("json_schema", "set `answer_format: object` or `text` for this judge"),
    ("max_tokens", "set `tokens_parameter: max_completion_tokens`, or lower `max_tokens`"),
)
#: The answer may have been made, and charged, and lost on the way.
LOST = frozenset({408, 499, 502, 504, 520, 522, 523, 524})
#: Another try may succeed.
PASSING = frozenset({408, 409, 425, 429, 499}) | frozenset(range(500, 600)) - {501, 505}


@dataclass(frozen=True)
class HttpError:
    """An answer of an endpoint that is no completion.

    text: its body.
    """

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def reason(self) -> str:
        """Its words, in one line."""
        return f"status {self.status}: {' '.join(self._message().split()) or 'no reason given'}"

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait as the endpoint says; None if it gives no number."""
        try:
            wait = float(self.headers.get("retry-after", ""))
        except ValueError:
            return None
        return wait if 0 <= wait < float("inf") else None

    @property
    def refused(self) -> bool:
        """Whether the endpoint refused the text, not the request."""
        return self.status in (400, 403, 422, 451) and bool(FILTERED.search(self._words()))

    @property
    def lost(self) -> bool:
        """Whether it may have been charged."""
        return self.status in LOST

    @property
    def passing(self) -> bool:
        """Whether another try may succeed."""
        return self.status in PASSING

    def remedy(self, model: str) -> str | None:
        """What to do, if every request would get this; None if only this one does."""
        words = self._words()
        if self.refused:
            return None
        if 300 <= self.status < 400:
            target = str(self.headers.get("location", ""))[:200]
            return f"it redirects to {target or 'nowhere'}; write in `base_url` where it leads"
        if self.status == 402 or (self.status in (400, 403, 429) and NO_CREDIT.search(words)):
            return CREDIT
        if self.status == 413 or (self.status == 429 and REQUEST_TOO_LARGE.search(words)):
            return TOO_LARGE
        if self.passing:
            return None
        if self._is_page():
            return PAGE
        if self.status in (401, 403):
            return KEY
        if self.status == 404 or (self.status == 400 and UNKNOWN_MODEL.search(words)):
            return f"it has no {model!r}; correct `model` or `base_url`"
        if self.status == 400:
            return None if TOO_LONG.search(words) else self._parameter_remedy()
        if self.status == 422:
            return self._parameter_remedy() or "it refuses the request; see its words"
        return "every request would get this; correct `base_url` and `model`"

    @property
    def hint(self) -> str:
        """What may help one request; empty if nothing is known."""
        if self.status == 400 and TOO_LONG.search(self._words()):
            return " (set `context_tokens`, which cuts the history to fit)"
        return ""

    def _parameter_remedy(self) -> str | None:
        message, error = self._message(), self._error()
        named = str(error.get("param") or "")
        if not NOT_ACCEPTED.search(self._words()) and "response_format" not in message:
            return None
        for parameter, remedy in PARAMETERS:
            if parameter in named or re.search(rf"\b{parameter}\b", message):
                return remedy
        if str(error.get("code")) in ("unsupported_parameter", "unknown_parameter"):
            return f"it does not accept {named or 'a parameter'} of the request"
        return None

    def _is_page(self) -> bool:
        start = self.text.lstrip("\ufeff \t\r\n")[:200].lower()
        kind = str(self.headers.get("content-type", "")).lower()
        return start.startswith(("<!doctype", "<html")) or (
            "html" in kind and start.startswith("<")
        )

    def _message(self) -> str:
        found = self._error().get("message")
        return (found if isinstance(found, str) and found else self.text)[:2000]

    def _words(self) -> str:
        """All that may say what is wrong."""
        return self.text[:20_000]

    def _error(self) -> dict[str, Any]:
        return next(_errors(self.text), {})


def is_web_page(headers: Mapping[str, str], text: str) -> bool:
    """Whether a body is a page for a browser."""
    return HttpError(200, headers, text)._is_page()


def error_in(body: Any) -> int | None:
    """The status of an error in a body that came with status 200; None if there is none."""
    if not isinstance(body, dict) or not body.get("error") or body.get("choices"):
        return None
    error = body["error"]
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    return code if isinstance(code, int) and 400 <= code < 600 else 400


def _errors(text: str) -> Iterator[dict[str, Any]]:
    try:
        body = parse_json(text)
    except ValueError:
        return
    if isinstance(body, list):  # Google's form
        body = body[0] if body else None
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            yield error
        elif isinstance(error, str):
            yield {"message": error}
