"""Reads the files of a finished batch: which request has an answer, an error, or neither.

An answer was paid for, so a line that holds a chat completion is one, whatever else is odd in it.
What may have been charged is told from what cost nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvfidelity.judges.failures import HttpError, error_in
from kvfidelity.judges.json_text import parse_json, without_surrogates


@dataclass(frozen=True)
class Line:
    """What a batch gave to one request.

    body: in JSON types, to be read as a chat completion; None if there is an error. reason: the
    error in words. charged: the error may have been charged.
    """

    body: Any = None
    error: HttpError | None = None
    reason: str = ""
    charged: bool = False


@dataclass
class Lines:
    """Lines of a batch by the key of their request. unread: lines that cannot be read."""

    by_key: dict[str, Line] = field(default_factory=dict)
    unread: int = 0

    @property
    def answers(self) -> int:
        """How many requests were answered."""
        return sum(line.error is None for line in self.by_key.values())

    @property
    def errors(self) -> list[HttpError]:
        """The errors of the other requests."""
        return [line.error for line in self.by_key.values() if line.error is not None]

    def add(self, content: bytes, keys: Iterable[str]) -> None:
        """Read a file; of two lines for one request the first counts, answers before errors."""
        wanted = set(keys)
        text = content.decode("utf-8", "replace").removeprefix("\ufeff")
        for part in filter(str.strip, text.split("\n")):
            try:
                entry = parse_json(part)
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or not isinstance(entry.get("custom_id"), str):
                self.unread += 1
            elif (key := entry["custom_id"]) in wanted:
                line, known = read_line(entry), self.by_key.get(key)
                if known is None or (known.error is not None and line.error is None):
                    self.by_key[key] = line


def read_line(entry: Mapping[str, Any]) -> Line:
    """What a line in JSON types says."""
    response, error = entry.get("response"), entry.get("error")
    about = response if isinstance(response, dict) else {}
    body = about.get("body")
    if isinstance(body, dict) and body.get("choices"):
        return Line(body)
    status, inner = _status(about.get("status_code")), error_in(body)
    if not _says_something(error):
        if status is not None and status < 300 and inner is None:
            return Line(body)
        words, status = body, status if status is None or status >= 300 else inner
    else:
        usage = {"usage": body["usage"]} if isinstance(body, dict) and "usage" in body else {}
        words = {"error": error} | usage
    text = without_surrogates(json.dumps(words, ensure_ascii=False))
    if status is not None and status >= 300:
        found = HttpError(status, {}, text)
        return Line(error=found, reason=found.reason, charged=found.lost)
    # Without a response, the request never reached the model: it expired, or it is not valid.
    found = HttpError(400, {}, text)
    if response is None and _says_something(error):
        return Line(error=found, reason=found.reason, charged=found.lost)
    given = json.dumps(about.get("status_code"))
    reason = f"neither an answer nor an error that is known (status {given}): {text}"
    return Line(error=found, reason=reason, charged=True)


def _status(value: Any) -> int | None:
    """An HTTP status, also as text; None for all else."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) == 3:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 100 <= value < 600 and value == int(value) else None


def _says_something(error: Any) -> bool:
    """Whether an error is one: not null, empty, or an object of such values."""
    if isinstance(error, dict):
        return any(map(_says_something, error.values()))
    return bool(error)
