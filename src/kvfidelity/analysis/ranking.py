"""What eviction buys and what it costs: the cells of one budget in the order of their loss."""

from __future__ import annotations

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.pairs import PAIRED
from kvfidelity.records.grid import BASELINE, CELL_COLUMNS

#: Cells of equal bytes: those that one threshold leaves with as many tokens.
EQUAL_BYTES = ("model", "dataset", "threshold", "budget_tokens")
#: Digits of nats per token from which two losses are one: below is what rounding makes of equal
#: computations.
DIGITS = 5


def ranking(turns: pl.DataFrame, policies: pl.DataFrame) -> pl.DataFrame:
    """One row per cell of `policies`, cells of one budget together, the least loss first.

    rank: among cells of one budget; cells of the same loss share one. Missing for cells whose
        policies set their own size. The order is that of the estimates: where intervals overlap it
        is not sure.
    cached_slots, cache_bytes, baseline_bytes: mean sizes after the prompt was fed, over the turns
        that `mean` is over, and of the baseline on the same turns.
    tokens_per_s, baseline_tokens_per_s: medians over turns that were decoded alone. A median,
        because the first turn of a process is slower than all others.

    Args:
        turns, policies: the tables of those names.
    """
    table = (
        policies.select(
            *CELL_COLUMNS,
            *("mean", "low", "high", "n_dialogues", "n_turns", "budget_tokens", "retained_share"),
        )
        .join(_bytes(turns), on=CELL_COLUMNS, how="left")
        .join(_speed(turns), on=CELL_COLUMNS, how="left")
        .with_columns(
            bytes_saved_share=1 - pl.col("cache_bytes") / pl.col("baseline_bytes"),
            n_timed=pl.col("n_timed").fill_null(0),
        )
        .sort(*EQUAL_BYTES, pl.col("mean").round(DIGITS), "policy", "positions", nulls_last=True)
    )
    rank = pl.when(pl.col("budget_tokens").is_not_null()).then(
        pl.col("mean").round(DIGITS).rank("min").over(EQUAL_BYTES)
    )
    schema = table_schema("ranking")
    return table.with_columns(rank=rank).select(
        pl.col(name).cast(dtype) for name, dtype in schema.items()
    )


def _bytes(turns: pl.DataFrame) -> pl.DataFrame:
    """Cache sizes of each cell and of the baseline, means over the turns that are scored."""
    size = "cache_bytes_after_prefill"
    baseline = turns.lazy().filter(kind=BASELINE).select(*PAIRED, baseline_bytes=size)
    scored = turns.lazy().filter(
        "after_eviction", "inside_window", pl.col("excess_nll").is_not_null()
    )
    return (
        scored.select(
            *{*CELL_COLUMNS, *PAIRED}, cache_bytes=size, cached_slots="slots_after_prefill"
        )
        .join(baseline, on=PAIRED)
        .group_by(CELL_COLUMNS)
        .agg(pl.col("cached_slots", "cache_bytes", "baseline_bytes").mean())
        .collect()
    )


def _speed(turns: pl.DataFrame) -> pl.DataFrame:
    """Decoded tokens per second of each cell, and of its model's baseline."""
    setting = ["model", "dataset"]
    timed = turns.lazy().filter(
        ~pl.col("shared_prefix"),
        pl.col("concurrency") == 1,
        pl.col("decode_tokens_per_s").is_not_null(),
    )
    speed = pl.col("decode_tokens_per_s").median()
    baseline = timed.filter(kind=BASELINE).group_by(setting).agg(baseline_tokens_per_s=speed)
    return (
        timed.filter(pl.col("kind") != BASELINE)
        .group_by(CELL_COLUMNS)
        .agg(tokens_per_s=speed, n_timed=pl.len())
        .join(baseline, on=setting, how="left")
        .collect()
    )
