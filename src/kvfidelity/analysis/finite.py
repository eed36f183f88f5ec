"""What is not finite is never a number: measured, it is missing and counted; computed, a fault.

NaN and infinity pass through sums and quantiles in silence, and JSON, which figures are made of,
cannot express them.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.errors import NotFiniteError

#: The column with how many values of a row's list are not finite, while tables are made.
IN_LISTS = "not_finite_in_list"


def counted(measured: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """How many measured values are not finite, by table and column, and in how many runs.

    Args:
        measured: tables by name, each with the `run` that a row is from.
    """
    rows = [
        {"table": name, "column": column, "runs": runs, "values": values}
        for name, table in measured.items()
        for column in not_finite(table)
        for runs, values in table.filter(~pl.col(column).is_finite())
        .select(pl.col("run").n_unique(), pl.len().alias("values"))
        .iter_rows()
    ]
    return pl.DataFrame(rows, table_schema("not_finite"))


def how_many_not_finite(column: str) -> pl.Expr:
    """Of a column of lists, such as one NLL per token: how many values of a row are not finite."""
    return pl.col(column).list.eval(~pl.element().is_finite()).list.sum()


def all_finite(lists: pl.Expr) -> pl.Expr:
    """Whether every value of a row's list is finite."""
    return lists.list.eval(pl.element().is_finite()).list.all()


def counted_in_lists(name: str, column: str, rows: pl.DataFrame) -> pl.DataFrame:
    """The same as `counted` for a column of lists.

    Args:
        rows: with `run` and, as IN_LISTS, what `how_many_not_finite` gives.
    """
    found = rows.filter(pl.col(IN_LISTS) > 0).select(
        table=pl.lit(name),
        column=pl.lit(column),
        runs=pl.col("run").n_unique(),
        values=pl.col(IN_LISTS).sum(),
    )
    schema = table_schema("not_finite")
    return found.filter(pl.col("values") > 0).select(
        pl.col(key).cast(schema[key]) for key in schema
    )


def missing_if_not_finite(measured: pl.DataFrame) -> pl.DataFrame:
    """The table with null where a measured value is not finite, such as an NLL that overflowed."""
    return measured.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name)
        for name in not_finite(measured)
    )


def refuse_not_finite(name: str, computed: pl.DataFrame) -> None:
    """Let no table pass that holds NaN or an infinity.

    Raises:
        NotFiniteError: it does; table and column are named.
    """
    for column in not_finite(computed):
        raise NotFiniteError(
            f"table {name}: column {column} holds a value that is not finite. Its formula "
            "is at fault: please report this line"
        )


def not_finite(table: pl.DataFrame) -> list[str]:
    """The columns of floats that hold NaN or an infinity."""
    return [
        name
        for name, kind in table.schema.items()
        if kind.is_float() and not table[name].is_finite().all()
    ]
