"""Claim C3: how far reading a prompt takes the cache past its threshold before it can evict."""

from __future__ import annotations

import polars as pl

from kvfidelity.analysis.columns import table_schema


def prefill_overshoot(turns: pl.DataFrame) -> pl.DataFrame:
    """One row per model, policy and threshold, over turns that have a threshold.

    Args:
        turns: the table of that name.
    """
    share = pl.col("prefill_overshoot_share")
    rows = (
        turns.filter(share.is_not_null())
        .group_by("model", "policy", "threshold")
        .agg(
            turns=pl.len(),
            turns_past=(share > 0).sum(),
            share_max=share.max(),
            bytes_max=(share * pl.col("threshold_tokens") * pl.col("token_bytes")).max(),
        )
    )
    schema = table_schema("prefill_overshoot")
    return rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).sort(
        "model", "policy", "threshold"
    )
