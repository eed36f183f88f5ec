"""Turns that a cell cannot be compared on, because only one of cell and baseline has a value."""

from __future__ import annotations

import polars as pl

from kvfidelity.records.grid import BASELINE, CELL_COLUMNS

#: What two rows share that are compared with each other.
PAIRED = ("model", "dataset", "dialogue", "seed", "replies", "turn")


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
    begun = pl.col("after_eviction") | (pl.col("finish_reason") == "out_of_memory")
    starts = managed.filter(begun).group_by(*same_run, *cell).agg(start=pl.col("turn").min())
    wanted = starts.join(baseline, on=same_run).filter(pl.col("turn") >= pl.col("start"))
    ours = managed.filter("has_value", "after_eviction").select(*PAIRED, *cell)
    keys = [*PAIRED, *cell]
    missing = [
        one.join(other, on=keys, how="anti").select(CELL_COLUMNS)
        for one, other in ((ours, wanted), (wanted, ours))
    ]
    counts = pl.concat(missing).group_by(CELL_COLUMNS).len().collect()
    return {row[:-1]: row[-1] for row in counts.rows()}
