"""Reading JSON, JSONL and Parquet in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ijson
import polars as pl

from kvfidelity.dialogues.sources.messages import conversation_of
from kvfidelity.dialogues.sources.raw import RawConversation, SourceCounts
from kvfidelity.errors import UserError

FORMS = ("sharegpt", "openai")
ROWS = 1000


def read_conversations(path: Path, form: str, counts: SourceCounts) -> Iterator[RawConversation]:
    """Whole conversations of a file, split segments joined again.

    Segments of one conversation follow each other in the file and overlap by one message or touch,
    as in ShareGPT's split form (ids `<base>_<index of first message>`).

    Raises:
        UserError: a missing file, an unknown form or ending, JSON that breaks before its end.
    """
    if form not in FORMS:
        raise UserError(f"dialogue format {form!r} is unknown; choose one of {', '.join(FORMS)}")
    if not path.is_file():
        raise UserError(f"dataset file {path} does not exist: mend `path` in the config")
    readers = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"dataset file {path} must end in {', '.join(readers)}")
    segments = _segments(readers[path.suffix](path, counts), form, counts)
    return _joined(segments, counts)


def _segments(records: Iterable[Any], form: str, counts: SourceCounts) -> Iterator[RawConversation]:
    for record in records:
        counts.records += 1
        made = conversation_of(record, form, form == "sharegpt", counts)
        if made is not None:
            yield made


def _json(path: Path, counts: SourceCounts) -> Iterator[Any]:
    """Records of a JSON array; an array cut off at the end of the file is reported, not fatal."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        records = ijson.items(handle, "item", use_float=True)
        while True:
            try:
                yield next(records)
            except StopIteration:
                return
            except ijson.IncompleteJSONError as error:
                # The parser says "incomplete" of broken text too; only at the end is it a cut.
                if "premature EOF" not in str(error) and "Incomplete" not in str(error):
                    raise _broken(path, counts, error) from None
                counts.truncated_at = size
                return
            except (ijson.JSONError, UnicodeDecodeError) as error:
                raise _broken(path, counts, error) from None


def _jsonl(path: Path, counts: SourceCounts) -> Iterator[Any]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"dataset file {path}, line {number}: broken JSON ({error}); mend or remove "
                    "that line"
                ) from None


def _parquet(path: Path, counts: SourceCounts) -> Iterator[Any]:
    try:
        for batch in pl.scan_parquet(path).collect_batches(chunk_size=ROWS):
            yield from batch.iter_rows(named=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"dataset file {path} is no readable Parquet ({reason})") from None


def _broken(path: Path, counts: SourceCounts, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(
        f"dataset file {path}: broken JSON after {counts.records} records ({reason}); mend the file "
        "there, or fetch it again"
    )


def _joined(segments: Iterable[RawConversation], counts: SourceCounts) -> Iterator[RawConversation]:
    """Join neighbours of one conversation; the last one of a truncated file is dropped."""
    whole: RawConversation | None = None
    for segment in segments:
        if whole is not None and segment.conversation_id == whole.conversation_id:
            joined = _join(whole, segment)
            if joined is not None:
                whole = joined
                counts.notes["segments_joined"] += 1
                continue
            counts.notes["segments_with_a_gap"] += 1
        if whole is not None:
            yield whole
        whole = segment
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
    return RawConversation(first.conversation_id, first.start, messages)
