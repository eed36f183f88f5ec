"""A project whose runs are there already, with replies that no two turns share: for judging."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from kvfidelity.atomic_files import write_json
from kvfidelity.dialogues.pool import KIND, pool_frame
from kvfidelity.pipeline.rule_params import run_settings, selection_params
from kvfidelity.pipeline.settings import load_settings
from kvfidelity.pipeline.sources import fetched_of, note_fetched, refresh
from kvfidelity.pipeline.staleness import notes_of
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.columns import EVICTIONS, TURNS
from kvfidelity.records.grid import RunKey, run_keys, runs_by_dialogue
from tests.workflow.project import CONFIG, Project, merged

METRICS = ("rep_2", "rep_3", "rep_4", "compression_ratio", "echo_share", "chrf", "rouge_l")


def with_replies(
    project: Project, dialogues: int, turns: int, judges: dict[str, Any], **more: Any
) -> None:
    """Configure `judges` and write what stands before them, the oldest first."""
    changes = {
        "datasets": {"own": {"count": dialogues}},
        "judges": judges,
        "judging": list(judges),
        "reliability": {"replies": 0},
    } | more
    project.configure(changes)
    folder = project.folder
    settings = load_settings(merged(CONFIG, changes))
    refresh(settings, folder)
    for item in fetched_of(settings, folder):
        item.folder.mkdir(parents=True)
        (item.folder / "x").touch()
        write_json(item.record, {})
        note_fetched(item.configured, item.record, item.source)
    rows: list[dict[str, object]] = [
        {
            "dialogue_id": str(number),
            "turns": [{"user": "x", "assistant": "y"}],
            "n_turns": 1,
            "n_tokens": 1,
            "language": "en",
            "source": "made",
            "questions": [],
        }
        for number in range(dialogues)
    ]
    results = folder / "results"
    dialogue_folder = results / "dialogues/tiny/own"
    notes = notes_of("dialogues", selection_params(settings, "own"))
    write_parquet(pool_frame(rows), dialogue_folder / "pool.parquet", kind=KIND, metadata=notes)
    manifest = {"conversations_read": dialogues, "kept": dialogues}
    write_json(dialogue_folder / "manifest.json", manifest)
    (dialogue_folder / "tokenizer").mkdir()
    (dialogue_folder / "tokenizer/x").touch()
    for run in run_keys(settings):
        spec = run_settings(settings, results, **RunKey.from_path(run)._asdict())
        notes = notes_of("generate") | {"spec": json.dumps(spec), "dtype": spec["dtype"]}
        tables = {
            "evictions": pl.DataFrame(schema=EVICTIONS),
            "turns": turn_rows(run, turns),
        }
        for kind, table in tables.items():
            file = results / "generate" / run / f"{kind}.parquet"
            write_parquet(table, file, kind=kind, metadata=notes)
    metrics = pl.DataFrame({"turn": range(turns)}).with_columns(
        [pl.lit(0.1).alias(name) for name in METRICS]
    )
    for dialogue, runs in runs_by_dialogue(settings).items():
        frame = pl.concat(metrics.select(pl.lit(run).alias("run"), pl.all()) for run in runs)
        file = results / "metrics" / dialogue / "metrics.parquet"
        frame = frame.cast({"turn": pl.Int32})
        write_parquet(frame, file, kind="metrics", metadata=notes_of("measure"))


def turn_rows(run: str, turns: int) -> pl.DataFrame:
    identity = RunKey.from_path(run)._asdict()
    rows = [
        dict.fromkeys(TURNS)
        | identity
        | {
            "seed": 0,
            "turn": turn,
            "turns_total": turns,
            "replies": "reference",
            "prompt": f"Question {turn} of {run}?",
            "reply": f"Answer {turn} of {run}.",
            "reference": "Yes.",
            "finish_reason": "eos",
        }
        for turn in range(turns)
    ]
    return pl.DataFrame(rows, TURNS)
