"""From a dataset file to a pool and a manifest in which every dialogue is accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.dialogues.cleaning import turns_of
from kvfidelity.dialogues.pool import pool_frame
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.selection import Candidate, Selection, Selector
from kvfidelity.dialogues.sources import SourceCounts, read_conversations
from kvfidelity.errors import UserError


def extract(
    data: Path, entry: Mapping[str, Any], segmenter: ChatSegmenter
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Read, clean and select the dialogues of one dataset.

    Args:
        data: folder with one `data.*` file and its `provenance.json`.
        entry: the dataset's entry in the config.

    Returns:
        The pool, and the manifest: where the data came from, conversations read, kept, and dropped
        by reason (read = kept + all dropped), and what cleaning mended.

    Raises:
        UserError: unusable data, or no dialogue left.
    """
    file = data_file(data)
    counts = SourceCounts()
    selector = Selector(Selection.of(entry.get("select", {})), counts.dropped)
    conversations = 0
    for raw in read_conversations(file, entry["format"], counts):
        conversations += 1
        turns, reason = turns_of(raw, counts.notes)
        if reason is not None:
            counts.dropped[reason] += 1
        else:
            selector.offer(Candidate(raw.conversation_id, turns))
    rows = selector.choose(segmenter, file.name)
    conversations += counts.dropped["cut_off_by_end_of_file"]
    manifest = {
        "provenance": json.loads((data / "provenance.json").read_text(encoding="utf-8")),
        "select": dict(entry.get("select", {})),
        "records_read": counts.records,
        "conversations_read": conversations,
        "kept": len(rows),
        "dropped": {reason: count for reason, count in sorted(counts.dropped.items()) if count},
        "mended": {note: count for note, count in sorted(counts.notes.items()) if count},
        "file_cut_off_at_byte": counts.truncated_at,
        "tokens": [row["n_tokens"] for row in rows],
    }
    if not rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in manifest["dropped"].items())
        raise UserError(f"no dialogue of {file} passes the selection ({reasons}): relax `select`")
    return pool_frame(rows), manifest


def data_file(folder: Path) -> Path:
    """The one `data.*` file of a fetched dataset."""
    found = sorted(Path(folder).glob("data.*"))
    if len(found) != 1:
        raise UserError(f"{folder} must hold one file data.json, data.jsonl or data.parquet")
    return found[0]
