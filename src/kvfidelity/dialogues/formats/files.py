"""Reading JSON, JSON Lines and Parquet in bounded memory, told apart by their content.

pyarrow is imported where it is used: the config's check imports this package for its list of
formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.formats.json_records import json_records
from kvfidelity.dialogues.formats.raw import Format, RawConversation, SourceCounts
from kvfidelity.dialogues.formats.registry import get_format
from kvfidelity.errors import UserError

BATCH_ROWS = 1000
PARQUET = b"PAR1"


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
        reader = _parquet if handle.read(len(PARQUET)) == PARQUET else json_records
    return joined(segments(reader(path, counts), format_, counts), counts)


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
    whole: RawConversation | None = None
    for part in group:
        both = _join(whole, part) if whole else part if part.start == 0 else None
        fitting.append(part)
        if both is None:
            break
        whole = both
    else:
        if whole is not None:
            counts.notes["segments_joined"] += len(fitting) - 1
            yield replace(whole, record_id=None)
        return
    piece: RawConversation | None = None
    for part in chain(fitting, group):
        both = _join(piece, part) if piece and _shares_text(piece, part) else None
        if both is not None:
            counts.notes["segments_joined"] += 1
        elif piece is not None:
            counts.notes["segments_with_a_gap"] += 1
            yield _under_its_whole_id(piece)
        piece = both or part
    if piece is not None:
        yield _under_its_whole_id(piece)


def _under_its_whole_id(part: RawConversation) -> RawConversation:
    return replace(part, conversation_id=part.record_id or part.conversation_id, record_id=None)


def _overlap(first: RawConversation, second: RawConversation) -> int:
    """Messages by which the numbers of two segments overlap; negative for a gap."""
    return first.start + len(first.messages) - second.start


def _shares_text(first: RawConversation, second: RawConversation) -> bool:
    shared = second.messages[: max(0, _overlap(first, second))]
    return any(message.text.strip() for message in shared)


def _join(first: RawConversation, second: RawConversation) -> RawConversation | None:
    overlap = _overlap(first, second)
    # An empty segment hides nothing; any other must begin before the next one.
    if overlap < 0 or second.start < first.start + (overlap > 0):
        return None
    shared = second.messages[:overlap]
    if shared != first.messages[len(first.messages) - overlap :]:
        return None
    messages = first.messages + second.messages[overlap:]
    questions = tuple(dict.fromkeys(first.questions + second.questions))
    return replace(first, messages=messages, questions=questions)


def _parquet(path: Path, counts: SourceCounts) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet as pq

    counts.read_as = "Parquet"
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"dataset file {path} is not readable as Parquet ({reason})") from None
