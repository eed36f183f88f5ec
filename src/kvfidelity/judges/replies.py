"""Reads a run's replies for judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.records.artifacts import read_parquet


def read_turns(turns: Path) -> list[dict[str, Any]]:
    """One row per turn, with `fed_reply`: the reply that entered the cache.

    Raises:
        UserError: the artifact is missing or damaged.
    """
    return _with_fed_reply(read_parquet(turns, kind="turns"))


def read_replies(turns: Path, metrics: Path) -> list[dict[str, Any]]:
    """The same with the text metrics.

    Raises:
        UserError: an artifact is missing or damaged.
    """
    rows = read_parquet(turns, kind="turns")
    return _with_fed_reply(rows.join(read_parquet(metrics, kind="metrics"), on="turn"))


def _with_fed_reply(rows: pl.DataFrame) -> list[dict[str, Any]]:
    # A judge sees as history what entered the cache.
    fed_column = pl.when(pl.col("replies") == "own").then("reply").otherwise("reference")
    return rows.sort("turn").with_columns(fed_reply=fed_column).to_dicts()
