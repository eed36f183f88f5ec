"""Rank correlation between the cells of one dialogue and turn, which face the same text."""

from __future__ import annotations

import polars as pl

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
    # Ranks are 1 to n, ties sharing theirs, so their mean is known.
    ranked = known.filter(pl.len().over("group") >= LEAST_CELLS).with_columns(
        (pl.col(name).rank() - (pl.len() + 1) / 2).over("group").alias(alias)
        for name, alias in ((one, "x"), (other, "y"))
    )
    x, y = pl.col("x"), pl.col("y")
    squares = (x * x).sum() * (y * y).sum()
    found = ranked.group_by("dialogue", maintain_order=True).agg(
        r=pl.when(squares > 0).then((x * y).sum() / squares.sqrt()),
        n_turns=pl.struct("seed", "turn").n_unique(),
    )
    z = pl.col("r").clip(-LARGEST, LARGEST).arctanh()
    return found.filter(pl.col("r").is_not_null()).select("dialogue", "n_turns", z=z)
