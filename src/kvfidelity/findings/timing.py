"""What evictions cost in bytes and seconds, by cell: a small table of a run's turns."""

from __future__ import annotations

import polars as pl

from kvfidelity.records.grid import CELL_COLUMNS

#: Measures of a turn, with what is taken of a dialogue's turns.
MEASURES = ("ttft_s", "prefill_s", "tpot_s", "eviction_s", "scoring_s")
TIMING: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(CELL_COLUMNS, pl.String),
    "n_dialogues": pl.Int64,
    "n_turns": pl.Int64,
    **dict.fromkeys(MEASURES, pl.Float64),
    "decode_tokens_per_s": pl.Float64,
    "cache_bytes_end": pl.Float64,
    "peak_device_bytes": pl.Float64,
    "n_evictions": pl.Int64,
    "eviction_ms": pl.Float64,
    "scoring_ms": pl.Float64,
}


def timing(turns: pl.DataFrame) -> pl.DataFrame:
    """One row per cell: medians over dialogues of the medians of their timed turns.

    Timed are turns of a single run (`concurrency` 1, no shared prefix), from the first turn on in
    which some run of the dialogue has evicted: so all cells, the baseline too, are of the same
    turns. `eviction_ms` and `scoring_ms` are per eviction.

    Args:
        turns: the table of that name.
    """
    alone = turns.filter(
        pl.col("concurrency").fill_null(1) == 1,
        ~pl.col("shared_prefix").fill_null(False),
        pl.col("ttft_s").is_not_null(),
    )
    evicting = pl.when(pl.col("evictions") > 0).then("turn").min()
    first = evicting.over("model", "dataset", "dialogue", "seed")
    late = alone.filter(pl.col("turn") >= first)
    per_eviction = [
        (1000 * pl.col(name).sum() / pl.col("evictions").sum()).alias(f"{name[:-2]}_ms")
        for name in ("eviction_s", "scoring_s")
    ]
    each = late.group_by(*CELL_COLUMNS, "dialogue", "seed", maintain_order=True).agg(
        pl.len().alias("n_turns"),
        pl.col(*MEASURES).median(),
        (1 / pl.col("tpot_s").median()).alias("decode_tokens_per_s"),
        pl.col("cache_bytes_end").cast(pl.Float64).mean(),
        pl.col("peak_device_bytes").cast(pl.Float64).max(),
        pl.col("evictions").cast(pl.Int64).sum().alias("n_evictions"),
        *(pl.when(pl.col("evictions").sum() > 0).then(value) for value in per_eviction),
    )
    medians = [name for name in TIMING if TIMING[name] == pl.Float64]
    rows = each.group_by(CELL_COLUMNS, maintain_order=True).agg(
        pl.col("dialogue").n_unique().alias("n_dialogues"),
        pl.col("n_turns").sum(),
        pl.col(medians).median(),
        pl.col("n_evictions").sum(),
    )
    return rows.select(pl.col(name).cast(dtype) for name, dtype in TIMING.items()).sort(
        CELL_COLUMNS
    )
