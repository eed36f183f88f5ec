"""Records of JSON text in bounded memory, with one decoder for every way to write them down.

The content says how to read a file, not its name: an array of records; an object that holds records
by their ids; or records one after another, as in JSON Lines.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from kvfidelity.dialogues.formats.raw import SourceCounts
from kvfidelity.dialogues.formats.record_bounds import excess_of
from kvfidelity.errors import UserError

#: Bytes read at a time.
BLOCK = 1 << 20
#: Bytes read at a time for a long record, whose beginning is parsed again each time.
LARGE_BLOCK = 4 << 20
#: Values that are objects, from which on an object is a collection of records and not one record.
MANY_OBJECTS = 64
#: Digits from which on an integer is no id and no text that anybody wrote.
LONGEST_INTEGER = 4_000
SPACE = re.compile(r"[ \t\r\n]*")
ARRAY, KEYED, LINES = "a JSON array", "a JSON object of records by id", "JSON Lines"


class _CutOffError(Exception):
    """The file ends in the middle of a value."""


def json_records(path: Path, counts: SourceCounts) -> Iterator[Any]:
    """Records of a file; those that an object holds get their key as `id`.

    A file that is cut off at its end is noted in `counts.truncated_at`, how the file was read in
    `counts.read_as`.

    Raises:
        UserError: text that is not UTF-8 or not JSON; the message says how it was read, and which
            record, line and byte is at fault.
    """
    with path.open("rb") as handle:
        text = _Text(path, handle, counts)
        try:
            first = text.peek()
            if first == "[":
                counts.read_as = ARRAY
                yield from _array(text)
            elif first == "{":
                yield from _object_or_lines(text, handle, path, counts)
            else:
                text.refuse(
                    "it begins with neither an array nor an object" if first else "it is empty"
                )
        except _CutOffError:
            counts.truncated_at = path.stat().st_size


def _array(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() != "]":
        yield text.value()
        while text.peek() == ",":
            text.take(",")
            yield text.value()
    text.take("]")
    if text.peek():
        text.refuse("there is more text after the end of the array")


def _object_or_lines(
    text: _Text, handle: BinaryIO, path: Path, counts: SourceCounts
) -> Iterator[Any]:
    counts.read_as = KEYED
    keyed = _holds_records(text)
    handle.seek(0)
    again = _Text(path, handle, counts)
    if not keyed:
        counts.read_as = LINES
        while again.peek():
            yield again.value()
        return
    for key, value in _members(again):
        yield {"id": key, **value} if isinstance(value, Mapping) else value
    if again.peek():
        again.refuse("there is more text after the end of the object")


def _holds_records(text: _Text) -> bool:
    """Whether an object is a collection of records, by its first members; none of them is kept."""
    number = 0
    try:
        for number, (_, value) in enumerate(_members(text), 1):
            if not isinstance(value, Mapping):
                return False
            if number == MANY_OBJECTS:
                return True
    except _CutOffError:
        if not number:
            raise
        return True
    # Of one object, all of whose values are objects, more text says that it is a record.
    return number > 0 and text.peek() != "{"


def _members(text: _Text) -> Iterator[tuple[str, Any]]:
    text.take("{")
    if text.peek() != "}":
        while True:
            if text.peek() != '"':
                text.refuse("a key in double quotes is expected")
            key = text.value()
            text.take(":")
            yield key, text.value()
            if text.peek() != ",":
                break
            text.take(",")
    text.take("}")


class _Text:
    """The text of a file from one value on, decoded as far as it is needed."""

    def __init__(self, path: Path, handle: BinaryIO, counts: SourceCounts) -> None:
        self._path, self._handle, self._counts = path, handle, counts
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_without_copies)
        self._buffer, self._at, self._ended = "", 0, False
        self._lines_before, self._bytes_before = 0, 0

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            found = SPACE.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Go past a character that must come next."""
        found = self.peek()
        if not found:
            self._cut()
        if found != character:
            self.refuse(f"{character!r} is expected, {found!r} is there")
        self._at += 1

    def value(self) -> Any:
        """The next value.

        Raises:
            UserError: broken JSON.
        """
        if not self.peek():
            self._cut()
        while True:
            try:
                found, end = self._json.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                unfinished = _may_go_on(error.msg, self._buffer[error.pos :])
                if unfinished and self._more():
                    continue
                if unfinished:
                    self._cut()
                self.refuse(error.msg, error.pos)
            except RecursionError:
                self.refuse("its values are nested too deeply")
            except _CopyError as error:
                self.refuse(f"an object has the key {error.args[0]!r} twice")
            # A number or a literal may go on.
            if end < len(self._buffer) or not self._more():
                if self._counts.read_as == LINES and "\n{" in self._buffer[self._at : end]:
                    self.refuse("it goes on where the next record begins")
                self._at = end
                return found

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        """Say what is wrong, and where the value at fault begins."""
        place = self._at if at is None else at
        line = self._lines_before + self._buffer.count("\n", 0, self._at) + 1
        begin, byte = (
            self._bytes_before + len(self._buffer[:end].encode("utf-8", "surrogatepass"))
            for end in (self._at, place)
        )
        remedy = (
            "correct or remove that line"
            if self._counts.read_as == LINES
            else "correct the file there, or fetch it again"
        )
        raise UserError(
            f"dataset file {self._path}, line {line}: broken JSON after {self._counts.records} "
            f"records, between bytes {begin} and {byte} ({reason}; it was read as "
            f"{self._counts.read_as or 'JSON'}); {remedy}"
        )

    def _cut(self) -> NoReturn:
        if self._counts.read_as == LINES and "\n" in self._buffer[self._at :]:
            self.refuse("its line ends in the middle of the record")
        raise _CutOffError

    def _more(self) -> bool:
        """Read on and forget what was used; whether there was more."""
        if self._ended:
            return False
        used = self._buffer[: self._at]
        self._lines_before += used.count("\n")
        self._bytes_before += len(used.encode("utf-8", "surrogatepass"))
        rest = self._buffer[self._at :]
        self._buffer, self._at = rest, 0
        if excess := excess_of(rest):
            self.refuse(excess)
        data = self._handle.read(min(max(BLOCK, len(rest)), LARGE_BLOCK))
        self._ended = not data
        try:
            text = self._bytes.decode(data, final=False)
        except UnicodeDecodeError as error:
            byte = self._handle.tell() - len(error.object) + error.start
            raise UserError(
                f"dataset file {self._path} is not UTF-8 at byte {byte} ({error.reason}), after "
                f"{self._counts.records} records; convert it to UTF-8, or unpack it if it is "
                "compressed"
            ) from None
        self._buffer, self._at = rest + text, 0
        return bool(data)


def _may_go_on(error: str, rest: str) -> bool:
    """Whether what the decoder stopped at may be the beginning of something that is right."""
    literals = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
    return (
        error.startswith("Unterminated string")
        or ("escape" in error and len(rest) < len("\\u0000"))
        or any(literal.startswith(rest) for literal in literals)
        or set(rest) <= set(".eE+-")
    )


class _CopyError(Exception):
    """A key that an object has twice."""


def _without_copies(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _CopyError(name)
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float("inf")
