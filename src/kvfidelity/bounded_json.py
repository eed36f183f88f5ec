"""JSON from outside: its size, depth and numbers are bounded before it is parsed.

Python's parser recurses once per level and converts an integer in quadratic time, so a few hundred
kilobytes can take its stack or minutes. What is refused here is a ValueError like all broken JSON.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

#: Levels of arrays and objects; nothing that this project reads has more than a dozen.
MAX_DEPTH = 64
#: Characters of a number; a 64-bit integer has 20, a float 24.
MAX_DIGITS = 400
#: Bytes of a file that is read at once, such as a model's config.json.
MAX_BYTES = 64 << 20
# Strings are matched first, so that what looks like a bracket or a number in one is skipped.
TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]|[0-9][0-9.eE+-]*+', re.DOTALL)


def parse_json(text: str | bytes | bytearray) -> Any:
    """The value of a JSON text; equal keys are taken as Python does, the last one.

    Raises:
        ValueError: it is not JSON or not UTF-8, nested too deeply, or has too long a number.
    """
    if not isinstance(text, str):
        text = bytes(text).decode("utf-8-sig")
    refuse_excess(text)
    return json.loads(text)


def read_json(file: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: as `parse_json`, or it is too large.
    """
    with file.open("rb") as handle:
        content = handle.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return parse_json(content)


def refuse_excess(text: str, max_digits: int = MAX_DIGITS) -> None:
    """Refuse what a parser could not read in bounded time and stack, before it is parsed.

    Raises:
        ValueError: values are nested too deeply, or a number is too long.
    """
    depth = 0
    for match in TOKENS.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"its values are nested more than {MAX_DEPTH} levels deep")
        elif first in "]}":
            depth -= 1
        elif first != '"' and match.end() - match.start() > max_digits:
            raise ValueError(f"a number has more than {max_digits} digits")
