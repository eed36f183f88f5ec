"""Rank correlation between the cells of one dialogue and turn, which face the same text."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: Cells of a turn that a correlation takes at least.
LEAST_CELLS = 3
#: Fisher's z of a correlation of 1 is infinite.
LARGEST = 0.999


def with_groups(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `group`, a number for each dialogue, seed and turn (and `probe`, if rows have it).

    Rows are ranked once per metric, and a number is found faster than names.
    """
    turn = ["dialogue", "seed", "turn", *({"probe"} & set(rows.columns))]
    numbers = rows.select(turn).unique(maintain_order=True).with_row_index("group")
    return rows.join(numbers, on=turn, how="left", maintain_order="left", nulls_equal=True)


def fisher_by_dialogue(rows: pl.DataFrame, one: str, other: str) -> pl.DataFrame:
    """One row per dialogue: Spearman's correlation within its turns on Fisher's scale.

    Both columns are ranked among the cells of one dialogue, seed and turn (and recall question, if
    rows have a `probe`), the ranks are taken from
    their mean there, and correlated over the turns of a dialogue. What differs between dialogues
    and turns, such as their length, plays no part. Turns with fewer than three cells, and dialogues
    in which a column does not vary within turns, are left out.

    Returns:
        dialogue, z, n_turns.
    """
    rows = rows if "group" in rows.columns else with_groups(rows)
    known = rows.select(
        "dialogue", "seed", "turn", "group", pl.col(one, other).cast(pl.Float64)
    ).filter(pl.col(one).is_finite(), pl.col(other).is_finite())
    turns = known.unique("group", keep="first", maintain_order=True)
    groups = known["group"].to_numpy()
    # Numbered without holes, whatever was filtered out.
    groups = (np.cumsum(np.bincount(groups) > 0) - 1)[groups]
    size = np.bincount(groups)
    x, y = centred_ranks(groups, known[one].to_numpy(), known[other].to_numpy())
    by_turn = pl.DataFrame(
        {"cells": size}
        | {
            name: np.bincount(groups, product, len(size))
            for name, product in (("xy", x * y), ("xx", x * x), ("yy", y * y))
        }
    )
    sums = turns.sort("group").hstack(by_turn)
    squares = pl.col("xx").sum() * pl.col("yy").sum()
    found = (
        turns.select("group")
        .join(sums, on="group", maintain_order="left")
        .filter(pl.col("cells") >= LEAST_CELLS)
        .group_by("dialogue", maintain_order=True)
        .agg(
            r=pl.when(squares > 0).then(pl.col("xy").sum() / squares.sqrt()),
            n_turns=pl.struct("seed", "turn").n_unique(),
        )
    )
    z = pl.col("r").clip(-LARGEST, LARGEST).arctanh()
    return found.filter(pl.col("r").is_not_null()).select("dialogue", "n_turns", z=z)


def centred_ranks(
    groups: NDArray[np.int64], *columns: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """The rank of each value in its group minus the mean rank there; ties share theirs.

    It is half the number of smaller values in the group minus half that of larger ones. Groups are
    many and small, so comparing all their values takes less time than sorting each.

    Args:
        groups: [n], numbers from 0 on, each used. columns: [n] each, finite.
    """
    order = np.argsort(groups, kind="stable")
    size = np.bincount(groups)
    group = groups[order]
    place = np.arange(len(groups)) - np.repeat(np.cumsum(size) - size, size)
    found = []
    for values in columns:
        grid = np.full((size.max(initial=0), len(size)), np.nan)
        grid[place, group] = values[order]
        ahead = np.zeros(grid.shape, np.int32)
        for cell in grid:
            ahead += cell < grid
            ahead -= cell > grid
        ranks = np.empty(len(values))
        ranks[order] = ahead[place, group] / 2
        found.append(ranks)
    return found
