"""Cells in which nothing was evicted: a policy that did nothing there equals the baseline."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvfidelity.records.grid import BASELINE

SETTING = ("model", "dataset", "threshold")


def cells_without_evictions(turns: pl.DataFrame) -> list[dict[str, Any]]:
    """Cells without an eviction in any run, of the same threshold together.

    Args:
        turns: the table of turns.

    Returns:
        One entry per model, dataset, threshold and `reached`: whether the cache of any run came to
        hold more tokens than the threshold; `policies`, their names; `all_policies`, whether no
        policy evicted anything there; `longest` and `threshold_tokens` in tokens.
    """
    evicting = turns.filter(pl.col("kind") != BASELINE)
    cells = (
        evicting.group_by(*SETTING, "policy", "positions", maintain_order=True)
        .agg(
            pl.col("evictions").sum(),
            pl.col("slots_peak").max().alias("longest"),
            pl.col("threshold_tokens").max(),
        )
        .with_columns(reached=pl.col("longest") > pl.col("threshold_tokens"))
    )
    without = cells.filter(
        (pl.col("evictions") == 0)
        & pl.col("longest").is_not_null()
        & pl.col("threshold_tokens").is_not_null()
    )
    number = {key: part.height for key, part in cells.group_by(*SETTING)}
    found = []
    for key, part in without.group_by(*SETTING, "reached", maintain_order=True):
        found.append(
            dict(zip((*SETTING, "reached"), key, strict=True))
            | {
                "policies": part["policy"].unique(maintain_order=True).to_list(),
                "all_policies": part.height == number[key[:3]],
                "longest": part["longest"].max(),
                "threshold_tokens": part["threshold_tokens"].max(),
            }
        )
    return found
