"""Recall questions: a list in the row of the turn that they follow, or a table of their own.

A run has few of them, and often none: a file for them would be one more for each run.
"""

from __future__ import annotations

import polars as pl

from kvfidelity.records.columns import RECALL, RECALL_QUESTION

#: The column of turns that holds them.
RECALL_COLUMN = "recall"


def with_questions(turns: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """Turns with the questions that are put after each, missing if there are none.

    Args:
        asked: the `turn` and the columns of `RECALL_QUESTION`, in the order in which they are put.
    """
    by_turn = asked.group_by("turn", maintain_order=True).agg(
        pl.struct(*RECALL_QUESTION).alias(RECALL_COLUMN)
    )
    return turns.join(by_turn, on="turn", how="left", maintain_order="left")


def questions(turns: pl.LazyFrame, *also: str) -> pl.LazyFrame:
    """One row per question, in the order of the turns, with the columns of `RECALL`.

    Args:
        also: further columns of turns to take over; they come last.
    """
    of_turn = [name for name in RECALL if name not in RECALL_QUESTION]
    return (
        turns.select(*of_turn, RECALL_COLUMN, *also)
        .filter(pl.col(RECALL_COLUMN).is_not_null())
        .explode(RECALL_COLUMN)
        .unnest(RECALL_COLUMN)
        .select(*RECALL, *also)
    )
