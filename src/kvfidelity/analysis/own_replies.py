"""The model's own replies: how likely the baseline's cache finds them, repetition, overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.recall import rank_in
from kvfidelity.analysis.statistics import column_mean, column_share
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS

TEXT_MEANS = ("rep_3", "echo_share", "chrf")
#: How a reply that was generated ended.
ENDINGS = ("eos", "length")


def came_to_an_end() -> pl.Expr:
    """Whether an own reply says something and ended before its longest; null without a reply.

    A reply without a token ended at once, which is how a ruined model often answers: it counts as
    one that did not come to an end.
    """
    ended = (pl.col("finish_reason") == "eos") & (pl.col("reply_token_count") > 0)
    return pl.when(pl.col("finish_reason").is_in(ENDINGS)).then(ended)


def own_replies(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per cell, over replies after an eviction; of the baseline over all.

    Replies without a token count among the replies and among those that did not come to an end.
    They have no likelihood and no words, so the means of these are over the others.

    Args:
        turns: the table of that name.
        options: confidence, resamples and seed.
    """
    chosen = turns.lazy().filter(
        pl.col("finish_reason").is_in(ENDINGS),
        pl.col("after_eviction") | (pl.col("kind") == "baseline"),
    )
    names = ("dialogue", "reply_token_count", "reply_nll_baseline", "finish_reason", *TEXT_MEANS)
    rows = []
    for key, part in chosen.select(*CELL_COLUMNS, *names).collect().group_by(CELL_COLUMNS):
        found = column_mean(
            part, pl.col("reply_nll_baseline"), pl.col("reply_token_count"), options
        )
        row = dict(zip(CELL_COLUMNS, key, strict=True))
        row |= {"mean": found.mean, "low": found.low, "high": found.high}
        row |= {"n": part.height, "empty": part.filter(reply_token_count=0).height}
        row |= {"n_dialogues": part["dialogue"].n_unique()}
        ended = column_share(part, came_to_an_end(), options)
        row |= {"complete": ended.mean, "complete_low": ended.low, "complete_high": ended.high}
        rows.append(row | {name: part[name].mean() for name in TEXT_MEANS})
    table = pl.DataFrame(rows, table_schema("own_replies"))
    return table.sort("model", "dataset", "threshold", "policy", rank_in("positions", POSITIONS))
