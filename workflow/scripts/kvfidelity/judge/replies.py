"""A run's replies as judges see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.artifacts import read_parquet


def read_replies(turns: Path, metrics: Path) -> list[dict[str, Any]]:
    """One row per turn: what was said and fed (`said`), and what was measured.

    Raises:
        UserError: an artifact is missing or damaged.
    """
    rows = read_parquet(turns, kind="turns")
    rows = rows.join(read_parquet(metrics, kind="metrics"), on="turn").sort("turn")
    # What entered the cache is what a judge is shown as the history.
    fed = pl.when(pl.col("replies") == "own").then("reply").otherwise("reference")
    return rows.with_columns(said=fed).to_dicts()
