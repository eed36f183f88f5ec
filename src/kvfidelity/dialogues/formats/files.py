"""Reading JSON, JSONL and Parquet in bounded memory.

ijson and polars are imported where they are used: the config's check imports this package for its
list of formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.formats.raw import Format, RawConversation, SourceCounts
from kvfidelity.dialogues.formats.registry import get_format
from kvfidelity.errors import UserError

BATCH_ROWS = 1000
#: Bytes that the JSON parser reads at a time; an error lies in the last block.
BLOCK = 1 << 16


def read_conversations(
    path: Path, format_name: str, counts: SourceCounts, format_files: Iterable[str] = ()
) -> Iterator[RawConversation]:
    """Whole conversations of a file, split segments joined again.

    Segments of one conversation follow each other in the file and overlap by one message or touch,
    as in ShareGPT's split form (ids `<base>_<index of first message>`).

    Args:
        counts: is updated as conversations are read.
        format_files: Python files that define further formats.

    Raises:
        UserError: a missing file, an unknown format or file ending, JSON that breaks before its
            end.
    """
    format_ = get_format(format_name, format_files)
    if not path.is_file():
        raise UserError(f"dataset file {path} does not exist; correct `path` in the config")
    readers = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"dataset file {path} must end in {', '.join(readers)}")
    return joined(segments(readers[path.suffix](path, counts), format_, counts), counts)


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
    """Join adjacent segments of one conversation; drop the last one of a truncated file."""
    whole: RawConversation | None = None
    for part in parts:
        if whole is not None and part.conversation_id == whole.conversation_id:
            both = _join(whole, part)
            if both is not None:
                whole = both
                counts.notes["segments_joined"] += 1
                continue
            counts.notes["segments_with_a_gap"] += 1
        if whole is not None:
            yield whole
        whole = part
    if whole is None:
        return
    if counts.truncated_at is not None:
        counts.dropped["cut_off_by_end_of_file"] += 1
        return
    yield whole


def _join(first: RawConversation, second: RawConversation) -> RawConversation | None:
    overlap = first.start + len(first.messages) - second.start
    if overlap < 0 or second.messages[:overlap] != first.messages[len(first.messages) - overlap :]:
        return None
    messages = first.messages + second.messages[overlap:]
    questions = tuple(dict.fromkeys(first.questions + second.questions))
    return RawConversation(first.conversation_id, first.start, messages, questions)


def _json(path: Path, counts: SourceCounts) -> Iterator[Any]:
    """Records of a JSON array, or the values of an object with their keys as `id`.

    A file cut off at its end is reported, not fatal.
    """
    import ijson

    size = path.stat().st_size
    with path.open("rb") as handle:
        beginning = handle.read(BLOCK)
        handle.seek(3 if beginning.startswith(b"\xef\xbb\xbf") else 0)
        is_object = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        records = (
            _keyed_records(handle) if is_object else ijson.items(handle, "item", buf_size=BLOCK)
        )
        while True:
            try:
                yield next(records)
            except StopIteration:
                return
            except ijson.IncompleteJSONError as error:
                # The parser calls broken text "incomplete" too; only these two mean a cut-off file.
                if "premature EOF" not in str(error) and "Incomplete" not in str(error):
                    raise _broken_json(path, counts, handle.tell(), error) from None
                counts.truncated_at = size
                return
            except (ijson.JSONError, ValueError) as error:
                raise _broken_json(path, counts, handle.tell(), error) from None


def _keyed_records(handle: Any) -> Iterator[Any]:
    import ijson

    for key, value in ijson.kvitems(handle, "", buf_size=BLOCK):
        yield {"id": key, **value} if isinstance(value, Mapping) else value


def _jsonl(path: Path, counts: SourceCounts) -> Iterator[Any]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    counts.truncated_at = path.stat().st_size
                    return
                raise UserError(
                    f"dataset file {path}, line {number}: broken JSON ({error}); correct or "
                    "remove that line"
                ) from None


def _parquet(path: Path, counts: SourceCounts) -> Iterator[Any]:
    import polars as pl

    try:
        for batch in pl.scan_parquet(path, glob=False).collect_batches(chunk_size=BATCH_ROWS):
            yield from batch.iter_rows(named=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"dataset file {path} is not readable as Parquet ({reason})") from None


def _broken_json(path: Path, counts: SourceCounts, byte: int, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(
        f"dataset file {path}: broken JSON after {counts.records} records, between bytes "
        f"{max(0, byte - BLOCK)} and {byte} ({reason}); correct the file there, or fetch it again"
    )
