"""Turns of a cell and the same turns of its baseline, and those that only one of the two has."""

from __future__ import annotations

import polars as pl

from kvfidelity.records.grid import BASELINE, CELL_COLUMNS

#: What two rows share that are compared with each other.
PAIRED = ("model", "dataset", "dialogue", "seed", "replies", "turn")


def compared_turns(turns: pl.DataFrame) -> pl.DataFrame:
    """Turns after an eviction, and of the baseline those that some cell has after an eviction.

    A mean over the baseline's other turns would be over an earlier part of the conversation. If
    nothing evicts, all turns.
    """
    baseline = pl.col("kind") == BASELINE
    evicted = turns.filter(~baseline, "after_eviction")
    if evicted.is_empty():
        return turns
    same = turns.filter(baseline).join(evicted.select(PAIRED).unique(), on=PAIRED, how="semi")
    return pl.concat([same, evicted])


def with_baseline(turns: pl.DataFrame, column: str) -> pl.DataFrame:
    """The turns that have `column`, where the baseline has it too, as `baseline_value`."""
    known = turns.filter(pl.col(column).is_not_null())
    baseline = known.filter(kind=BASELINE).select(*PAIRED, baseline_value=column)
    return known.join(baseline, on=PAIRED)


def unpaired_turns(turns: pl.DataFrame, has_value: pl.Expr) -> dict[tuple[str, ...], int]:
    """How many turns of each cell, from a run's first eviction on, one of the two has alone.

    Where memory runs out for a run, it has no later turns: the baseline's count.

    Args:
        turns: the table of that name.
        has_value: of a turn.

    Returns:
        The count by CELL_COLUMNS; cells that lack no pair are not in it.
    """
    cell = [name for name in CELL_COLUMNS if name not in PAIRED]
    known = turns.lazy().with_columns(has_value=has_value.fill_null(False))
    managed = known.filter(pl.col("kind") != BASELINE)
    baseline = known.filter("has_value", kind=BASELINE).select(PAIRED)
    same_run = [name for name in PAIRED if name != "turn"]
    affected = pl.col("after_eviction") | (pl.col("finish_reason") == "out_of_memory")
    starts = managed.filter(affected).group_by(*same_run, *cell).agg(start=pl.col("turn").min())
    wanted = starts.join(baseline, on=same_run).filter(pl.col("turn") >= pl.col("start"))
    ours = managed.filter("has_value", "after_eviction").select(*PAIRED, *cell)
    keys = [*PAIRED, *cell]
    missing = [
        one.join(other, on=keys, how="anti").select(CELL_COLUMNS)
        for one, other in ((ours, wanted), (wanted, ours))
    ]
    counts = pl.concat(missing).group_by(CELL_COLUMNS).len().collect()
    return {row[:-1]: row[-1] for row in counts.rows()}
