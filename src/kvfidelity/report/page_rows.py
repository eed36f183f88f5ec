"""Rows of tables as the page's templates take them: grouped, in order, with the cells they open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.window import CHANGES
from kvfidelity.records.grid import CELL_COLUMNS
from kvfidelity.report.position_modes import position_order


def cell_key(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script finds a run by."""
    return {name: row[name] for name in CELL_COLUMNS}


def claim_cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cell that a claim is about, and the one that it is compared with, if there is one."""
    cells = [dict(row)]
    policy, _, positions = (row["against"] or "").rpartition(", ")
    if policy:
        cells.append(dict(row) | {"policy": policy, "positions": positions})
    return cells


def contrast_cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both sides of a contrast."""
    return [dict(row) | {row["factor"]: row[side]} for side in ("first", "second")]


def missing_by_reason(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Missing verdicts by judge and reason, with the turns that they are of as text."""
    of_turn = pl.format("turn {}: {} of {}", "turn", "missing", "replies")
    return (
        table.group_by("judge", "status", maintain_order=True)
        .agg(pl.col("missing").sum(), turns=of_turn.str.join(", "))
        .to_dicts()
    )


def mixed(environments: pl.DataFrame) -> list[str]:
    """Models whose runs were made in more than one environment."""
    counts = environments.group_by("model", maintain_order=True).len()
    return counts.filter(pl.col("len") > 1)["model"].to_list()


def changes_by_setting(changes: pl.DataFrame) -> list[dict[str, Any]]:
    """One entry per model and dataset, with each of its changes by name; None if there is none."""
    entries = []
    for (model, dataset), part in changes.group_by("model", "dataset", maintain_order=True):
        by_name = {row["change"]: row for row in part.to_dicts()}
        entries.append(
            {"model": model, "dataset": dataset} | {name: by_name.get(name) for name in CHANGES}
        )
    return entries


def in_cell_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by setting and policy, position modes in their usual order."""
    names = ("model", "dataset", "threshold", "policy")
    return sorted(
        rows, key=lambda row: ([row[name] for name in names], position_order(row["positions"]))
    )
