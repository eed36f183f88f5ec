"""How far a second, independent run of a finding is from the published one: each shown number
against its repetition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from kvfidelity.records.grid import CELL_COLUMNS
from kvfidelity.report.formatting import count, signed

#: Digits after the point with which the page shows losses, margins and shares (as whole percents).
DIGITS = 2
#: The numbers that are compared, by table.
COMPARED = {
    "policies": ("mean", "low", "high"),
    "leaderboard": ("margin_lost", "margin_lost_low", "margin_lost_high", "recalled"),
    "recall_by_depth": ("recalled",),
}
#: What tells rows of these tables apart.
KEYS = (*CELL_COLUMNS, "origin", "depth")
#: One row per table and column: how many numbers both runs have or one of them lacks, how many are
#: shown differently, and the largest and mean absolute difference of those that both have.
REPETITION: dict[str, type[pl.DataType]] = {
    "table": pl.String,
    "column": pl.String,
    "numbers": pl.Int64,
    "shown_differently": pl.Int64,
    "max_difference": pl.Float64,
    "mean_difference": pl.Float64,
}


def compare(first: Mapping[str, pl.DataFrame], second: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Table REPETITION of two runs of one finding with one model.

    Args:
        first, second: their tables; of COMPARED, those that `first` has rows in.
    """
    rows = []
    for table, columns in COMPARED.items():
        if table not in first or first[table].is_empty():
            continue
        keys = [key for key in KEYS if key in first[table].columns]
        pairs = first[table].join(
            second[table], on=keys, how="full", suffix="_again", nulls_equal=True
        )
        rows += [_difference(table, name, pairs) for name in columns]
    return pl.DataFrame(rows, REPETITION)


def _difference(table: str, column: str, pairs: pl.DataFrame) -> dict[str, Any]:
    either = pairs.select(one=column, other=f"{column}_again").filter(
        pl.col("one").is_not_null() | pl.col("other").is_not_null()
    )
    shown = [tuple(signed(value, DIGITS) for value in row) for row in either.iter_rows()]
    distance = (either["one"] - either["other"]).abs().drop_nulls()
    return {
        "table": table,
        "column": column,
        "numbers": either.height,
        "shown_differently": sum(one != other for one, other in shown),
        "max_difference": distance.max(),
        "mean_difference": distance.mean(),
    }


def repetition_sentences(rows: pl.DataFrame, facts: Mapping[str, Any]) -> Iterator[str]:
    """What the page says of a repetition.

    Args:
        rows: table REPETITION. facts: of the second run, as `export.run_facts` has them.
    """
    numbers, differing = (int(rows[name].sum()) for name in ("numbers", "shown_differently"))
    where = ", ".join(facts["hardware"]) or str(facts["device"])
    known = rows.drop_nulls("max_difference").sort("max_difference", descending=True)
    if known.is_empty():
        return
    most = known.row(0, named=True)
    of = f"of the {count(numbers, 'number')} in the tables above"
    same = (
        f"each {of} is shown with the same digits"
        if not differing
        else f"{differing} {of} {'differs' if differing == 1 else 'differ'} in the last digit "
        "shown or by more"
    )
    yield (
        f"Run a second time ({where}, {facts['date']}, commit {facts['commit']}), {same}; the "
        f"largest difference is {most['max_difference']:.1g} (`{most['column']}` in "
        f"`{most['table']}`)."
    )


def repetition_rows(rows: pl.DataFrame) -> list[list[str]]:
    """The table as the page shows it, without its head."""
    return [
        [
            f"{row['table']}: {row['column']}",
            str(row["numbers"]),
            str(row["shown_differently"]),
            *(
                "" if row[name] is None else f"{row[name]:.1g}"
                for name in ("max_difference", "mean_difference")
            ),
        ]
        for row in rows.to_dicts()
    ]
