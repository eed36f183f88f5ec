"""Parquet files with notes: kind, schema version, content digest, and how they were made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from kvfidelity.atomic_files import remove_leftovers, replacing
from kvfidelity.errors import UserError
from kvfidelity.records.schema_text import schema_text
from kvfidelity.records.schema_version import SCHEMA_VERSION

#: Columns that differ between two equal runs: left out of the content digest.
TIMINGS = frozenset(
    {
        "eviction_s",
        "scoring_s",
        "healing_s",
        "eviction_ms",
        "scoring_ms",
        "ranking_bytes",
        "held_bytes",
        "prefill_s",
        "ttft_s",
        "tpot_s",
        "decode_tokens_per_s",
        "tokens_per_s",
        "baseline_tokens_per_s",
        "n_timed",
        "concurrency",
        "batch_tokens_per_s",
        "peak_device_bytes",
        "jobs_shared",
        "wall_s_median",
        "wall_s_max",
        "wall_s",
        "cpu_s",
        "peak_rss_mb",
        "first_made",
        "last_made",
    }
)
PREFIX = "kvfidelity."


def write_parquet(
    frame: pl.DataFrame, path: Path, *, kind: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a table with its kind, schema version and content digest in the Parquet metadata."""
    write_content(parquet_content(frame, kind=kind, metadata=metadata), path)


def parquet_content(
    frame: pl.DataFrame, *, kind: str, metadata: Mapping[str, str] | None = None
) -> memoryview:
    """The bytes of the file that `write_parquet` writes."""
    entries = {"kind": kind, "schema_version": str(SCHEMA_VERSION), "digest": digest(frame)}
    entries |= metadata or {}
    prefixed = {PREFIX + key: entries[key] for key in sorted(entries)}
    content = io.BytesIO()
    frame.write_parquet(content, metadata=prefixed)
    return content.getbuffer()


def write_content(content: memoryview, path: Path) -> None:
    """Write a file as a whole, and remove what a killed job left of it.

    By Python: polars loses the number of the system's error, such as that of a full disk.
    """
    remove_leftovers(path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_parquet(path: Path, *, kind: str, columns: Collection[str] | None = None) -> pl.DataFrame:
    """Read a table of that kind.

    Args:
        columns: those to read, as far as the table has them; None: all.

    Raises:
        UserError: missing, damaged, of another kind, or of another schema version.
    """
    notes = read_metadata(path)
    if notes.get("kind") != kind:
        raise UserError(f"{path} holds {notes.get('kind', 'no artifact')!r}, not {kind!r}")
    if notes.get("schema_version") != str(SCHEMA_VERSION):
        raise UserError(
            f"{path} has schema version {notes.get('schema_version')}, this code writes "
            f"{SCHEMA_VERSION}: delete it and run again"
        )
    try:
        if columns is None:
            return pl.read_parquet(path, glob=False)
        # Not `read_parquet_schema`, to which brackets in a folder's name are a pattern.
        schema = pl.scan_parquet(path, glob=False).collect_schema()
        chosen = [name for name in schema if name in columns]
        return pl.read_parquet(path, columns=chosen, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _corrupt_file(path, error) from None


def read_metadata(path: Path) -> dict[str, str]:
    """The notes that `write_parquet` left, without their prefix; only the footer is read.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        notes = pl.read_parquet_metadata(path)
    # A few damaged footers make polars panic, which is no `Exception`.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: run the workflow to make it") from None
        raise _corrupt_file(path, error) from None
    return {key.removeprefix(PREFIX): text for key, text in notes.items() if PREFIX in key}


def digest(frame: pl.DataFrame) -> str:
    """SHA-256 over a table's content, timings aside, 16 hex digits."""
    content = frame.select(name for name in frame.columns if name not in TIMINGS)
    hasher = hashlib.sha256(f"{schema_text(content.schema)}\n".encode())
    for part in content.iter_slices(10_000):  # a million rows as one text would fill the memory
        lines = io.BytesIO()
        part.write_ndjson(lines)
        hasher.update(lines.getbuffer())
    return hasher.hexdigest()[:16]


def _corrupt_file(path: Path, error: BaseException) -> UserError:
    reason = str(error).split("\n")[0]
    return UserError(f"{path} is damaged ({reason}): delete it and run again")
