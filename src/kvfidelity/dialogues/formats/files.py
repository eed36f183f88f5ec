"""Reading JSON, JSON Lines and Parquet in bounded memory, told apart by their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.formats.json_records import json_records
from kvfidelity.dialogues.formats.parquet_rows import ParquetError, parquet_rows
from kvfidelity.dialogues.formats.raw import Format, RawConversation, SourceCounts
from kvfidelity.dialogues.formats.record_bounds import bounded_record
from kvfidelity.dialogues.formats.registry import get_format
from kvfidelity.errors import UserError

PARQUET = b"PAR1"
#: What other files begin with.
PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x04\x22\x4d\x18": "compressed with lz4",
}
#: Segments and messages of one conversation; beyond that, ids are not what they look like.
MOST_PARTS = 100_000


class TooManyPartsError(Exception):
    """More records look like segments of one conversation than one has; its id."""


def read_conversations(
    path: Path, format_name: str, counts: SourceCounts, format_files: Iterable[str] = ()
) -> Iterator[RawConversation]:
    """Whole conversations of a file, split segments joined again.

    Segments of one conversation follow each other in the file and overlap by one message or touch,
    as in ShareGPT's split form (ids `<base>_<index of first message>`); see `joined`.

    Args:
        counts: is updated as conversations are read.
        format_files: Python files that define further formats.

    Raises:
        UserError: a missing file, an unknown format, JSON that breaks before its end, or a file
            that is neither JSON nor Parquet.
    """
    format_ = get_format(format_name, format_files)
    if not path.is_file():
        raise UserError(f"dataset file {path} does not exist; correct `path` in the config")
    with path.open("rb") as handle:
        first = handle.read(8)
    for begin, what in PACKED.items():
        if first.startswith(begin):
            raise UserError(f"dataset file {path} is {what}; unpack it, and name what is in it")
    reader = _parquet if first.startswith(PARQUET) else json_records
    return _named(joined(segments(reader(path, counts), format_, counts), counts), path)


def _named(conversations: Iterator[RawConversation], path: Path) -> Iterator[RawConversation]:
    try:
        yield from conversations
    except TooManyPartsError as error:
        raise UserError(
            f"dataset file {path}: the segments of conversation {error.args[0][:80]!r} have more "
            f"than {MOST_PARTS:,} messages; correct the ids of its records"
        ) from None


def segments(
    records: Iterable[Any], format_: Format, counts: SourceCounts
) -> Iterator[RawConversation]:
    """Records as conversations or segments of one; records of another format are counted."""
    for record in records:
        counts.records += 1
        try:
            if not isinstance(record, Mapping):
                raise TypeError("a record must be an object")
            conversation = format_.read(record, counts)
        except (KeyError, TypeError, ValueError, RecursionError):
            counts.dropped["malformed_record"] += 1
        else:
            yield conversation


def joined(parts: Iterable[RawConversation], counts: SourceCounts) -> Iterator[RawConversation]:
    """Join adjacent segments of one conversation; drop the last one of a truncated file.

    Ids with a number are taken for segments only with evidence: the first has number 0 and every
    next one begins where the messages before it end or overlaps with them; or, failing that, two
    overlap in their text. What is not joined keeps its whole id. Then what is no message is left
    out, and counted.
    """
    last: RawConversation | None = None
    for whole in _wholes(parts, counts):
        if last is not None:
            yield last
        messages = tuple(message for message in whole.messages if message.role)
        counts.notes["malformed_message_dropped"] += len(whole.messages) - len(messages)
        last = replace(whole, messages=messages)
    if last is None:
        return
    if counts.truncated_at is not None:
        counts.dropped["cut_off_by_end_of_file"] += 1
        return
    yield last


def _wholes(parts: Iterable[RawConversation], counts: SourceCounts) -> Iterator[RawConversation]:
    def base(part: RawConversation) -> str | None:
        return None if part.record_id is None else part.conversation_id

    for name, group in groupby(parts, base):
        if name is None:
            yield from group
        else:
            yield from _conversations(group, counts)


def _conversations(
    group: Iterator[RawConversation], counts: SourceCounts
) -> Iterator[RawConversation]:
    """Conversations of neighbours whose ids differ in their number alone."""
    fitting: list[RawConversation] = []
    whole: _Chain | None = None
    for part in group:
        fitting.append(part)
        if whole is None and part.start == 0:
            whole = _Chain(part)
        elif whole is None or not whole.add(part):
            break
        if len(fitting) + len(whole.messages) > MOST_PARTS:
            raise TooManyPartsError(part.conversation_id)
    else:
        if whole is not None:
            counts.notes["segments_joined"] += len(fitting) - 1
            yield replace(whole.conversation, record_id=None)
        return
    piece: _Chain | None = None
    for part in chain(fitting, group):
        if piece and piece.shares_text(part) and piece.add(part):
            counts.notes["segments_joined"] += 1
            if len(piece.messages) > MOST_PARTS:
                raise TooManyPartsError(part.conversation_id)
            continue
        if piece is not None:
            counts.notes["segments_with_a_gap"] += 1
            yield _under_its_whole_id(piece.conversation)
        piece = _Chain(part)
    if piece is not None:
        yield _under_its_whole_id(piece.conversation)


def _under_its_whole_id(part: RawConversation) -> RawConversation:
    return replace(part, conversation_id=part.record_id or part.conversation_id, record_id=None)


class _Chain:
    """A segment, and those after it that were joined to it."""

    def __init__(self, first: RawConversation) -> None:
        self._first = first
        self.messages = list(first.messages)
        self._questions = list(first.questions)

    @property
    def conversation(self) -> RawConversation:
        """All of them as one."""
        questions = tuple(dict.fromkeys(self._questions))
        return replace(self._first, messages=tuple(self.messages), questions=questions)

    def shares_text(self, part: RawConversation) -> bool:
        """Whether a segment repeats a text at the end of this one."""
        shared = part.messages[: max(0, self._overlap(part))]
        return any(message.text.strip() for message in shared)

    def add(self, part: RawConversation) -> bool:
        """Join a segment if it continues this one; whether it does."""
        overlap, start = self._overlap(part), self._first.start
        # An empty segment hides nothing; any other must begin before the next one.
        if overlap < 0 or part.start < start + (overlap > 0):
            return False
        if list(part.messages[:overlap]) != self.messages[len(self.messages) - overlap :]:
            return False
        self.messages += part.messages[overlap:]
        self._questions += part.questions
        return True

    def _overlap(self, part: RawConversation) -> int:
        """Messages by which the numbers of two segments overlap; negative for a gap."""
        return self._first.start + len(self.messages) - part.start


def _parquet(path: Path, counts: SourceCounts) -> Iterator[Any]:
    counts.read_as = "Parquet"
    try:
        for line in parquet_rows(path):
            yield bounded_record(line.decode("utf-8"))
    except (ParquetError, ValueError) as error:
        raise UserError(
            f"dataset file {path} is not readable as Parquet (after {counts.records} records: "
            f"{error}); fetch it again, or convert it to JSON Lines"
        ) from None
