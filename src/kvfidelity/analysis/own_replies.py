"""The model's own replies: how likely the baseline's cache finds them, repetition, overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.pairs import PAIRED, compared_turns, unpaired_turns, with_baseline
from kvfidelity.analysis.recall import rank_in
from kvfidelity.analysis.shares import column_share
from kvfidelity.analysis.statistics import Estimate, column_mean
from kvfidelity.records.grid import BASELINE, CELL_COLUMNS, POSITIONS

TEXT_MEANS = ("rep_3", "echo_share", "chrf")
#: How a reply that was generated ended.
ENDINGS = ("eos", "length")
#: The likelihood that is fair to all runs: their own histories may be ruined.
AFTER_BASELINE = "reply_nll_baseline_history"
#: What else the table is made of.
NEEDED = (
    *("kind", "after_eviction", "inside_window", "finish_reason", "reply_token_count"),
    *("reply_nll_baseline", AFTER_BASELINE),
)


def came_to_an_end() -> pl.Expr:
    """Whether an own reply says something and ended before its longest; null without a reply.

    A reply without a token ended at once, which is how a ruined model often answers: it counts as
    one that did not come to an end.
    """
    ended = (pl.col("finish_reason") == "eos") & (pl.col("reply_token_count") > 0)
    return pl.when(pl.col("finish_reason").is_in(ENDINGS)).then(ended)


def own_replies(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per cell, over replies after an eviction; of the baseline over the same turns.

    Replies without a token count among the replies and among those that did not come to an end.
    They have no likelihood and no words, so the means of these are over the others. A likelihood
    past the trained window is no measure of quality, as in excess NLL: those columns are of replies
    inside it. `lost` is the paired difference from the baseline, in which turns count alike.

    Args:
        turns: the table of that name.
        options: confidence, resamples and seed.
    """
    # Every step below copies its rows, so only these columns take part.
    turns = turns.select(*{*PAIRED, *CELL_COLUMNS, *NEEDED, *TEXT_MEANS})
    chosen = compared_turns(turns).filter(pl.col("finish_reason").is_in(ENDINGS))
    pairs = with_baseline(chosen.filter("inside_window"), AFTER_BASELINE)
    by_cell = dict(pairs.group_by(CELL_COLUMNS))
    measured = pl.col("inside_window") & pl.col(AFTER_BASELINE).is_not_null()
    unpaired = unpaired_turns(turns, measured)
    tokens = pl.col("reply_token_count")
    rows = []
    for key, part in chosen.group_by(CELL_COLUMNS):
        row = dict(zip(CELL_COLUMNS, key, strict=True))
        inside = part.filter("inside_window")
        own = column_mean(inside, pl.col("reply_nll_baseline"), tokens, options)
        row |= {"mean": own.mean, "low": own.low, "high": own.high}
        row |= _named("history_nll", column_mean(inside, pl.col(AFTER_BASELINE), tokens, options))
        row |= {"n": part.height, "empty": part.filter(reply_token_count=0).height}
        row |= {"n_dialogues": part["dialogue"].n_unique()}
        row |= _named("complete", column_share(part, came_to_an_end(), options))
        if part["kind"][0] != BASELINE:
            both = by_cell.get(key, pairs.clear())
            lost = pl.col(AFTER_BASELINE) - pl.col("baseline_value")
            row |= _named("lost", column_mean(both, lost, pl.lit(1), options))
            row |= {"n_pairs": both.height, "n_unpaired": unpaired.get(key, 0)}
        rows.append(row | {name: part[name].mean() for name in TEXT_MEANS})
    table = pl.DataFrame(rows, table_schema("own_replies"))
    return table.sort("model", "dataset", "threshold", "policy", rank_in("positions", POSITIONS))


def _named(name: str, found: Estimate) -> dict[str, float | None]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
