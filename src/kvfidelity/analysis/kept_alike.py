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


def with_same_kept(contrasts: pl.DataFrame, dialogues: pl.DataFrame) -> pl.DataFrame:
    """Add `same_kept` to contrasts of position modes: whether in every dialogue both kept the same
    tokens; missing for contrasts of policies.

    Args:
        dialogues: the table of that name.
    """
    runs = dialogues.filter(pl.col("keep_sets").is_not_null()).select(
        *CELL, "positions", "dialogue", "seed", "keep_sets"
    )
    pairs = runs.join(runs, on=[*CELL, "dialogue", "seed"], suffix="_second")
    alike = pairs.group_by(
        *CELL, pl.col("positions").alias("first"), pl.col("positions_second").alias("second")
    ).agg(same_kept=(pl.col("keep_sets") == pl.col("keep_sets_second")).all())
    order = contrasts.columns
    joined = contrasts.drop("same_kept").join(
        alike, on=[*CELL, "first", "second"], how="left", maintain_order="left"
    )
    return joined.select(order)
