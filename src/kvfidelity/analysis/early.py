"""The loss right after an eviction: the first tokens of the reply that follows it."""

from __future__ import annotations

import polars as pl

from kvfidelity.analysis.finite import all_finite
from kvfidelity.analysis.pairs import PAIRED
from kvfidelity.records.grid import BASELINE

#: Tokens of a reply that are early: 5% of the tokens carry two thirds of the loss.
EARLY = 32
COLUMNS = ("early_nll", "early_tokens", "early_excess_nll")
#: Triggers under which an eviction comes before a reply and not inside it.
BEFORE_REPLIES = ("turn", "prompt")


def early_columns() -> list[pl.Expr]:
    """`early_nll` and `early_tokens` of the artifact's rows, from its NLL of each token; the first
    is missing where one of these is not finite."""
    first = pl.col("reference_token_nll").list.head(EARLY)
    return [
        pl.when(all_finite(first)).then(first.list.mean()).cast(pl.Float64).alias("early_nll"),
        first.list.len().cast(pl.Int32).alias("early_tokens"),
    ]


def with_early_excess(turns: pl.DataFrame) -> pl.DataFrame:
    """Add `early_excess_nll`: early_nll minus the baseline's, of turns that begin with an eviction;
    missing in all others. The three columns come last."""
    baseline = turns.filter(pl.col("kind") == BASELINE).select(*PAIRED, _early="early_nll")
    evicted = (pl.col("evictions") > 0) & pl.col("trigger").is_in(BEFORE_REPLIES)
    excess = pl.col("early_nll") - pl.col("_early")
    return (
        turns.join(baseline, on=list(PAIRED), how="left", maintain_order="left")
        .with_columns(early_excess_nll=pl.when(evicted).then(excess))
        .drop("_early")
        .select(pl.exclude(COLUMNS), *COLUMNS)
    )
