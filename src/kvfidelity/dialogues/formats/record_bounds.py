"""How large one record of a file may be: parsed, it takes far more memory than its text."""

from __future__ import annotations

import json
import re
from typing import Any

#: Characters of one record. The longest of a published data set has 7 million.
LONGEST_RECORD = 32 << 20
#: Values and keys of one record, about 100 bytes each once they are parsed. A record with 5,000
#: messages has 40,000.
MOST_VALUES = 1_000_000
#: Characters below which a record's values are not counted; each takes up to 25 bytes when parsed.
COUNTED_FROM = 1 << 20
SEPARATORS = ",:[{"
# Strings are matched first, so that separators in them are skipped.
TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,:\[{]', re.DOTALL)


def excess_of(text: str, start: int = 0) -> str | None:
    """What is too much in the text of one record, from `start` on; None if nothing is."""
    length = len(text) - start
    if length > LONGEST_RECORD:
        return f"a value is longer than {LONGEST_RECORD >> 20} million characters"
    if length > COUNTED_FROM and _values(text, start) > MOST_VALUES:
        return f"a value consists of more than {MOST_VALUES:,} values"
    return None


def bounded_record(text: str) -> Any:
    """A record of JSON text that `parquet_rows` wrote.

    Raises:
        ValueError: it is too large.
    """
    if excess := excess_of(text):
        raise ValueError(excess)
    return json.loads(text)


def _values(text: str, start: int) -> int:
    """Values, or what may be as many: an upper bound where that is enough."""
    bound = sum(text.count(separator, start) for separator in SEPARATORS)
    if bound <= MOST_VALUES:
        return bound
    return sum(match[0][0] != '"' for match in TOKENS.finditer(text, start))
