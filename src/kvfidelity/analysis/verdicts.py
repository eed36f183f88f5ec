"""Judges' verdicts on a run's replies, summed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.recall import rank_in
from kvfidelity.analysis.statistics import column_mean
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS

KEYS = ("judge", *CELL_COLUMNS)


def verdict_means(verdicts: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per judge and cell: the mean score, and how many replies have no score.

    Args:
        verdicts: the table of that name; without a column if no judge was run.
        options: confidence, resamples and seed.
    """
    rows = []
    parts = verdicts.filter(pl.col("status") != "no_reply") if verdicts.height else verdicts
    for key, part in parts.group_by(KEYS) if parts.height else ():
        scored = part.filter(pl.col("status") == "ok")
        found = column_mean(scored, pl.col("score"), pl.lit(1), options)
        row = dict(zip(KEYS, key, strict=True))
        row |= {"mean": found.mean, "low": found.low, "high": found.high}
        row |= {"n": scored.height, "n_dialogues": found.n_dialogues}
        rows.append(row | {"missing": part.height - scored.height})
    table = pl.DataFrame(rows, table_schema("verdict_means"))
    places = ("model", "dataset", "threshold", "policy")
    return table.sort(*places, rank_in("positions", POSITIONS), "judge")


def missing_verdicts(verdicts: pl.DataFrame) -> pl.DataFrame:
    """How many replies have no score, by judge and reason; turns without a reply do not count."""
    schema = table_schema("missing_verdicts")
    if verdicts.is_empty():
        return pl.DataFrame(schema=schema)
    missing = verdicts.filter(~pl.col("status").is_in(["ok", "no_reply"]))
    counts = missing.group_by("judge", "status").agg(missing=pl.len().cast(pl.Int64))
    return counts.select(list(schema)).sort("judge", "status")
