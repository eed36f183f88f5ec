"""Makes a pool of a dataset file, and a manifest that accounts for every dialogue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.dialogues.cleaning import other_roles, questions_of, turns_of
from kvfidelity.dialogues.formats import RawConversation, SourceCounts, read_conversations
from kvfidelity.dialogues.join import join_sessions
from kvfidelity.dialogues.lengths import LengthCounts
from kvfidelity.dialogues.pool import pool_frame
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.selection import Candidate, Selection, Selector
from kvfidelity.errors import UserError


def extract(
    data: Path, entry: Mapping[str, Any], segmenter: ChatSegmenter
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Read, clean and select the dialogues of one dataset.

    Args:
        data: folder with one `data.*` file and its `provenance.json`.
        entry: the dataset's entry in the config. `join_tokens`, if given, joins neighbouring
            dialogues into sessions of at least this many tokens before the selection.
            `prompt_cuts`: how the session cuts the prompts that `select.min_prompt_tokens` counts.
            `apart_from`: a split of which not even first messages are shared.

    Returns:
        The pool, and the manifest: where the data came from, conversations read, kept, and dropped
        by reason (read = kept + all dropped + joined to others), what was fixed for the chat
        template, and what cleaning changed, also for each dialogue, with its tokens and the
        messages of other roles that were left out.

    Raises:
        UserError: unusable data, or no dialogue left.
    """
    file = data_file(data)
    counts, lengths = SourceCounts(), LengthCounts()
    selection = Selection.of(entry.get("select", {}))
    apart_from = entry.get("apart_from")
    selector = Selector(selection, counts.dropped, entry.get("prompt_cuts"), apart_from)
    raw = read_conversations(file, entry["format"], counts, entry.get("format_files", ()))
    candidates = _candidates(raw, counts, lengths)
    if entry.get("join_tokens"):
        candidates = join_sessions(candidates, entry["join_tokens"], segmenter, counts.dropped)
    for candidate in candidates:
        selector.add(candidate)
    rows = selector.choose(segmenter, file.name)
    manifest = _manifest(counts, rows) | {
        "provenance": json.loads((data / "provenance.json").read_text(encoding="utf-8")),
        "select": dict(entry.get("select", {})),
        "join_tokens": entry.get("join_tokens"),
        "chat": segmenter.notes,
        "lengths": lengths.bins(),
        "dialogues": [
            {
                "dialogue_id": row["dialogue_id"],
                "tokens": row["n_tokens"],
                "cleaned": {note: count for note, count in chosen.cleaned.items() if count},
                "other_roles": dict(chosen.other_roles),
            }
            for row, chosen in zip(rows, selector.chosen, strict=True)
        ],
    }
    if not rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in manifest["dropped"].items())
        cut = " and the file ends in the middle of a record" if counts.truncated_at else ""
        raise UserError(
            f"no dialogue of {file} passes the selection ({reasons or 'it holds none'}){cut}: "
            "relax `select`, or check the file and its `format`"
        )
    return pool_frame(rows), manifest


def data_file(folder: Path) -> Path:
    """The one `data.*` file of a fetched dataset."""
    found = sorted(path for path in Path(folder).iterdir() if path.stem == "data")
    if len(found) != 1:
        raise UserError(f"{folder} must hold one file data.json, data.jsonl or data.parquet")
    return found[0]


def _candidates(
    conversations: Iterable[RawConversation], counts: SourceCounts, lengths: LengthCounts
) -> Iterator[Candidate]:
    for raw in conversations:
        counts.conversations += 1
        cleaned: Counter[str] = Counter()
        turns, reason = turns_of(raw, cleaned)
        counts.notes += cleaned
        if reason is not None:
            counts.dropped[reason] += 1
            continue
        lengths.add(turns)
        yield Candidate(
            raw.conversation_id, turns, questions_of(raw, turns), cleaned, other_roles(raw)
        )


def _manifest(counts: SourceCounts, rows: list[dict[str, Any]]) -> dict[str, Any]:
    joined = counts.dropped.pop("joined", 0)
    # Records dropped for these two reasons never became whole conversations.
    early = counts.dropped["malformed_record"] + counts.dropped["cut_off_by_end_of_file"]
    dropped = {reason: count for reason, count in sorted(counts.dropped.items()) if count}
    return {
        "records_read": counts.records,
        "conversations_read": counts.conversations + early,
        "kept": len(rows),
        "dropped": dropped,
        "joined_to_others": joined,
        "cleaned": {note: count for note, count in sorted(counts.notes.items()) if count},
        "read_as": counts.read_as,
        "file_cut_off_at_byte": counts.truncated_at,
        "tokens": [row["n_tokens"] for row in rows],
        "questions": sum(len(row["questions"]) for row in rows),
    }
