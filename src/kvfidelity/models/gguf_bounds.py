"""A GGUF file's header, looked through before the parsers make objects of its values.

They take microseconds and hundreds of bytes for each value of an array, and recurse into arrays of
arrays, so a few megabytes may take minutes or the stack.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MAGIC = b"GGUF"
#: Keys, tensors, and values in all arrays; a vocabulary of 262,000 has 1.3 million values.
MOST_KEYS, MOST_TENSORS, MOST_VALUES = 10_000, 100_000, 4_000_000
#: Arrays of arrays are in no published file.
MAX_DEPTH = 4
#: Bytes of a value by its type's number; the two that are not here are texts and arrays.
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, ARRAY = 8, 9


def check_header(file: Path) -> None:
    """Refuse a header of more than a model has; a file that is no GGUF is left to its parser.

    Raises:
        ValueError: what is too much. struct.error: it ends in its header.
    """
    with file.open("rb") as handle:
        if handle.read(4) != MAGIC:
            return
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Header(content).check()


class _Header:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at, self._values = content, len(MAGIC), 0

    def check(self) -> None:
        _, tensors, keys = self._take("<IQQ")
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise ValueError(f"it states {keys} keys and {tensors} tensors")
        for _ in range(keys):
            self._skip_text()
            (kind,) = self._take("<I")
            self._skip(kind, 0)

    def _skip(self, kind: int, depth: int) -> None:
        if kind == TEXT:
            self._skip_text()
        elif kind == ARRAY:
            inner, count = self._take("<IQ")
            self._values += count
            if self._values > MOST_VALUES:
                raise ValueError(f"its keys have more than {MOST_VALUES:,} values")
            if depth == MAX_DEPTH:
                raise ValueError(f"its arrays are nested more than {MAX_DEPTH} levels deep")
            if inner in WIDTHS:
                self._at += WIDTHS[inner] * count
            else:
                for _ in range(count):
                    self._skip(inner, depth + 1)
        elif kind in WIDTHS:
            self._at += WIDTHS[kind]
        else:
            raise ValueError(f"a value has the unknown type {kind}")

    def _skip_text(self) -> None:
        (length,) = self._take("<Q")
        self._at += length

    def _take(self, form: str) -> tuple[int, ...]:
        if self._at > len(self._content):
            raise struct.error("it is cut off in its header")
        found = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return found
