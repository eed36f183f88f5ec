"""Which runs kept the same tokens: without that, a comparison of positions compares tokens too."""

from __future__ import annotations

import hashlib

import polars as pl

CELL = ("model", "dataset", "policy", "threshold")


def keep_sets(evictions: pl.DataFrame) -> pl.DataFrame:
    """A digest of the tokens that each run's evictions kept, as `run` and `keep_sets`.

    Args:
        evictions: the log of all runs, with `token_spans`.
    """
    spans = pl.col("token_spans").list.eval(pl.element().struct.json_encode()).list.join(",")
    text = pl.concat_str("turn", "tokens_seen", "group", spans, separator=" ")
    rows = evictions.select("run", text=text)
    joined = rows.group_by("run", maintain_order=True).agg(pl.col("text").str.join("\n"))
    digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in joined["text"]]
    return joined.select("run", keep_sets=pl.Series(digests, dtype=pl.String))


def with_same_kept(
    comparisons: pl.DataFrame, dialogues: pl.DataFrame, first: pl.Expr, second: pl.Expr
) -> pl.DataFrame:
    """Fill in `same_kept` of comparisons of position modes: whether in every dialogue both kept the
    same tokens; missing for comparisons of policies.

    Args:
        comparisons: a table with the columns of CELL and `same_kept`.
        dialogues: the table of that name.
        first, second: the two position modes of a row.
    """
    runs = dialogues.filter(pl.col("keep_sets").is_not_null()).select(
        *CELL, "positions", "dialogue", "seed", "keep_sets"
    )
    pairs = runs.join(runs, on=[*CELL, "dialogue", "seed"], suffix="_second")
    modes = ["positions_first", "positions_second"]
    alike = (
        pairs.rename({"positions": "positions_first"})
        .group_by(*CELL, *modes)
        .agg(same_kept=(pl.col("keep_sets") == pl.col("keep_sets_second")).all())
    )
    joined = (
        comparisons.drop("same_kept")
        .with_columns(positions_first=first, positions_second=second)
        .join(alike, on=[*CELL, *modes], how="left", maintain_order="left")
    )
    return joined.select(comparisons.columns)
