"""The report's first paragraph: what a policy's loss is made of, from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

#: Nats per token that a reader would call a difference.
MARGIN = 0.05
#: Shares of the loss above and below which one cause is named.
MOST_SHARE, LITTLE_SHARE = 0.8, 0.2


def attribute_losses(tables: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """For each policy and threshold, its loss split in two, at the same kept tokens.

    stale: excess NLL with stale positions. difference: stale minus rerotated, what the positions
    cost. rest: rerotated, what is lost with the tokens. kept_spans: contiguous stretches of
    kept tokens, mean. share: difference / stale. cause: "none", "positions", "tokens",
    "both" or "undecided". Attention-ranked eviction comes first, then by what positions cost.
    """
    keys = ["model", "dataset", "policy", "threshold"]
    kinds = tables["turns"].select(*keys, "kind").unique()
    cells = tables["policies"]
    stale = cells.filter(pl.col("positions") == "stale").select(
        *keys, stale="mean", stale_low="low", stale_high="high"
    )
    remaining = cells.filter(pl.col("positions") == "rerotated").select(
        *keys, "kept_spans", rest="mean", rest_low="low", rest_high="high"
    )
    difference = tables["contrasts"].filter(
        pl.col("factor") == "positions", pl.col("first") == "stale", pl.col("second") == "rerotated"
    )
    joined = difference.join(stale, on=keys).join(remaining, on=keys).join(kinds, on=keys)
    ordered = joined.sort(
        pl.col("kind") != "attention_top",
        *keys[:2],
        -pl.col("mean").max().over("policy"),
        *keys[2:],
    )
    return [row | attribute_loss(row) for row in ordered.to_dicts()]


def attribute_loss(row: Mapping[str, Any]) -> dict[str, Any]:
    """`cause` and `share` of one row of `causes`."""
    share = row["mean"] / row["stale"] if row["stale"] > MARGIN else None
    if row["low"] is None or row["stale_low"] is None:
        cause = "undecided"
    elif row["stale_high"] <= MARGIN:
        cause = "none"
    elif row["stale_low"] <= MARGIN or share is None:
        cause = "undecided"
    elif row["low"] > MARGIN and share >= MOST_SHARE:
        cause = "positions"
    elif share <= LITTLE_SHARE:
        cause = "tokens"
    else:
        cause = "both" if row["low"] > MARGIN else "undecided"
    return {"cause": cause, "share": share}
