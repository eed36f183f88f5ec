"""A project whose runs are there already, with replies that no two turns share: for judging."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvfidelity.dialogues.pool import KIND, pool_frame
from kvfidelity.pipeline.settings import load_settings
from kvfidelity.records.artifacts import write_json, write_parquet
from kvfidelity.records.columns import EVICTIONS, TURNS
from kvfidelity.records.grid import RunKey, run_keys
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
    for run_key in ("resources/models/tiny", "resources/datasets/own"):
        (folder / run_key).mkdir(parents=True)
        (folder / run_key / "x").touch()
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
    run_key = folder / "results/dialogues/tiny/own"
    write_parquet(pool_frame(rows), run_key / "pool.parquet", kind=KIND)
    write_json(run_key / "manifest.json", {"conversations_read": dialogues, "kept": dialogues})
    for run in run_keys(load_settings(merged(CONFIG, changes))):
        made = folder / "results/generate" / run
        for kind, schema in (("recall", {}), ("evictions", EVICTIONS)):
            write_parquet(pl.DataFrame(schema=schema), made / f"{kind}.parquet", kind=kind)
        write_parquet(turn_rows(run, turns), made / "turns.parquet", kind="turns")
        metrics = pl.DataFrame({"turn": range(turns)}).with_columns(
            [pl.lit(0.1).alias(name) for name in METRICS]
        )
        file = folder / "results/metrics" / run / "metrics.parquet"
        write_parquet(metrics.cast({"turn": pl.Int32}), file, kind="metrics")


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
