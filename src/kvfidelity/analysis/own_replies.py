"""The model's own replies: how likely the baseline's cache finds them, repetition, overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.recall import rank_in
from kvfidelity.analysis.statistics import column_mean, column_share
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS

TEXT_MEANS = ("rep_3", "echo_share", "chrf")


def own_replies(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per cell, over replies after an eviction; of the baseline over all.

    Args:
        turns: the table of that name.
        options: confidence, resamples and seed.
    """
    chosen = turns.lazy().filter(
        pl.col("reply_token_count") > 0,
        pl.col("after_eviction") | (pl.col("kind") == "baseline"),
        pl.col("reply_nll_baseline").is_not_null(),
    )
    names = ("dialogue", "reply_token_count", "reply_nll_baseline", "finish_reason", *TEXT_MEANS)
    rows = []
    for key, part in chosen.select(*CELL_COLUMNS, *names).collect().group_by(CELL_COLUMNS):
        found = column_mean(
            part, pl.col("reply_nll_baseline"), pl.col("reply_token_count"), options
        )
        row = dict(zip(CELL_COLUMNS, key, strict=True))
        row |= {"mean": found.mean, "low": found.low, "high": found.high}
        row |= {"n": part.height, "n_dialogues": found.n_dialogues}
        ended = column_share(part, pl.col("finish_reason") == "eos", options)
        row |= {"complete": ended.mean, "complete_low": ended.low, "complete_high": ended.high}
        rows.append(row | {name: part[name].mean() for name in TEXT_MEANS})
    table = pl.DataFrame(rows, table_schema("own_replies"))
    return table.sort("model", "dataset", "threshold", "policy", rank_in("positions", POSITIONS))
