"""The tables that the page is made of."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from kvfidelity.records.artifacts import read_parquet
from kvfidelity.report import transcripts, what_was_run

TABLES = (
    "turns",
    "evictions",
    "verdict_means",
    "missing_verdicts",
    "missing_by_cell",
    "own_replies",
    "prefill_overshoot",
    "baselines",
    "policies",
    "ranking",
    "recall",
    "contrasts",
    "attribution",
    "predictors",
    "predictor_validation",
    "penalties",
    "window",
    "window_changes",
    "environments",
    "recall_by_depth",
    "healings",
    "finetuning",
    "balance",
    "balance_pairs",
    "claims",
    "reliability",
    "comparisons",
    "missing_comparisons",
    "costs",
    "not_finite",
)
#: Of the large tables the columns that the page uses.
COLUMNS = {
    "turns": {*transcripts.COLUMNS, *what_was_run.COLUMNS, "evictions", "slots_peak"},
    "evictions": set(transcripts.COLUMNS_OF_EVICTIONS),
}


def read_tables(folder: Path) -> dict[str, pl.DataFrame]:
    """The tables named in TABLES, of the large ones without the columns that the page does not use.

    Raises:
        UserError: one is missing or damaged.
    """
    return {
        name: read_parquet(folder / f"{name}.parquet", kind=name, columns=COLUMNS.get(name))
        for name in TABLES
    }
