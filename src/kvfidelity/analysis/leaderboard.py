"""What each policy forgets at equal bytes, and what its evictions cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis import recall
from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.ranking import DIGITS, EQUAL_BYTES
from kvfidelity.records.grid import CELL_COLUMNS

#: Cells that compete: equal bytes under one position mode, so that only the kept tokens differ.
COMPETING = (*EQUAL_BYTES, "positions")
EACH_EVICTION = ("run", "turn", "step")


def leaderboard(
    ranked: pl.DataFrame,
    questions: pl.DataFrame,
    evictions: pl.DataFrame,
    options: Mapping[str, Any],
) -> pl.DataFrame:
    """One row per cell of `ranking`, cells of one budget and position mode together, the one that
    forgets least first.

    What is forgotten is the margin that is lost on needles, where every cell that competes was
    asked for some: it tells policies apart that lose hardly any likelihood. Elsewhere it is the
    excess NLL. Cells whose policies set their own size have no rank.

    Args:
        ranked: the table `ranking`. questions: the table `recall`. evictions: the table of that
            name, one row per eviction and keep set.
        options: confidence, resamples, seed.
    """
    keys = list(CELL_COLUMNS)
    table = (
        ranked.drop("rank")
        .join(_needles(questions, options), on=keys, how="left")
        .join(_costs(evictions), on=keys, how="left")
    )
    asked = pl.col("margin_lost").is_not_null().all().over(COMPETING)
    forgotten = pl.when(asked).then("margin_lost").otherwise("mean").round(DIGITS)
    rank = pl.when(pl.col("budget_tokens").is_not_null()).then(
        forgotten.rank("min").over(COMPETING)
    )
    table = table.with_columns(
        rank=rank,
        ordered_by=pl.when(asked).then(pl.lit("margin_lost")).otherwise(pl.lit("mean")),
    ).sort(*COMPETING, forgotten, "policy", nulls_last=True)
    return table.select(
        pl.col(name).cast(dtype) for name, dtype in table_schema("leaderboard").items()
    )


def _needles(questions: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """Recall of needles in each cell, over all depths."""
    asked = questions.filter(
        "after_eviction",
        pl.col("origin") == "needle",
        pl.col("kind") != "baseline",
        pl.col("margin_lost").is_not_null(),
    )
    names = dict.fromkeys(("margin_lost", "margin_lost_low", "margin_lost_high"), pl.Float64)
    names |= {"recalled": pl.Float64, "recalled_baseline": pl.Float64}
    schema = dict.fromkeys(CELL_COLUMNS, pl.String) | names | {"n_questions": pl.Int64}
    rows = []
    for key, part in asked.group_by(CELL_COLUMNS, maintain_order=True):
        found = recall.estimate(part, "margin_lost", pl.col("margin_lost"), options)
        rows.append(
            dict(zip(CELL_COLUMNS, map(str, key), strict=True))
            | {"margin_lost": found.mean, "margin_lost_low": found.low}
            | {"margin_lost_high": found.high, "recalled": part["recalled"].mean()}
            | {"recalled_baseline": (part["recalled"] + part["recall_lost"]).mean()}
            | {"n_questions": part.height}
        )
    return pl.DataFrame(rows, schema)


def _costs(evictions: pl.DataFrame) -> pl.DataFrame:
    """Milliseconds and bytes of each cell's evictions: medians, the first of a process is slow."""
    return (
        evictions.lazy()
        .unique([*CELL_COLUMNS, *EACH_EVICTION])
        .group_by(CELL_COLUMNS)
        .agg(
            scoring_ms=1000 * pl.col("scoring_s").median(),
            eviction_ms=1000 * (pl.col("scoring_s") + pl.col("eviction_s")).median(),
            ranking_bytes=pl.col("ranking_bytes").median(),
            held_bytes=pl.col("held_bytes").median(),
            n_evictions=pl.len(),
        )
        .collect()
    )
