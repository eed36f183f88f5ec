"""The environments that runs were made in: versions, hardware, code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.records.artifacts import read_metadata
from kvfidelity.records.notes import MADE, VERSION


def environments(
    turns: Sequence[Path],
    models: Sequence[str],
    notes_of: Callable[[Path], Mapping[str, str]] = read_metadata,
) -> pl.DataFrame:
    """One row per distinct environment of a model's runs, the most common first, with when its
    first and its last run were made.

    Args:
        turns: the turns artifacts of all runs. models: of each, its model.
        notes_of: reads an artifact's notes.

    Raises:
        UserError: an artifact is missing or damaged.
    """
    counts: Counter[tuple[str | None, ...]] = Counter()
    made: dict[tuple[str | None, ...], list[str]] = {}
    for file, model in zip(turns, models, strict=True):
        notes = notes_of(file)
        names = sorted(name for name in notes if name.startswith(VERSION))
        versions = ", ".join(f"{name.removeprefix(VERSION)} {notes[name]}" for name in names)
        about = [notes.get(name) for name in ("hardware", "dtype", "code")]
        environment = (model, *about, versions)
        counts[environment] += 1
        if MADE in notes:
            made.setdefault(environment, []).append(notes[MADE])
    rows = [
        (*environment, count, min(times, default=None), max(times, default=None))
        for environment, count in counts.items()
        for times in [made.get(environment, [])]
    ]
    table = pl.DataFrame(rows, table_schema("environments"), orient="row")
    return table.sort("model", -pl.col("runs"), "hardware", "code", "versions", nulls_last=True)
