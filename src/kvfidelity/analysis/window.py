"""Claim C1: NLL of reference replies by token index through the trained window, of the baseline and
of runs whose cache stays below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean

#: Bins per trained window.
BINS_PER_WINDOW = 32
#: Share of the window on each side of its edge that the change compares.
REACH = 0.25
#: Changes along the window, and the tokens that each is over.
CHANGES = {
    "nll_drift_inside": "reference_tokens",
    "nll_change_at_window": "reference_tokens",
    "nll_change_beyond_window": "tokens_beyond",
}


def by_token_index(logged: pl.LazyFrame) -> pl.LazyFrame:
    """Mean NLL of reference tokens by token index, per run.

    Tokens whose NLL is not finite are left out; so are runs of a model without a trained window.

    Args:
        logged: turn rows with `reference_token_nll` (nats, one per reference token, the first being
            token index `tokens_seen_start + prompt_tokens`).

    Returns:
        run, model, dataset, kind, dialogue, seed, trained_window, start and stop (token indices),
        nll, tokens.
    """
    keys = ["run", "model", "dataset", "kind", "dialogue", "seed", "trained_window"]
    count = pl.col("reference_token_nll").list.len().cast(pl.Int32)
    window = pl.col("trained_window").is_not_null()
    scored = logged.filter(count > 0, window).with_row_index("row")
    first = pl.col("tokens_seen_start") + pl.col("prompt_tokens")
    step = (pl.col("trained_window") // BINS_PER_WINDOW).clip(lower_bound=1)
    nll = pl.col("nll").cast(pl.Float64)
    # Per token only numbers are kept; names are joined to the bins, which are few.
    bins = (
        scored.select(
            "row",
            step.alias("step"),
            pl.int_ranges(first, first + count).alias("index"),
            pl.col("reference_token_nll").alias("nll"),
        )
        .explode("index", "nll")
        .with_columns(nll=pl.when(nll.is_finite()).then(nll))
        .group_by("row", start=pl.col("index") // pl.col("step") * pl.col("step"))
        .agg(stop=pl.col("step").first(), nll=pl.col("nll").sum(), tokens=pl.col("nll").count())
        .filter(pl.col("tokens") > 0)
    )
    return (
        bins.join(scored.select("row", *keys), on="row")
        .group_by(*keys, "start")
        .agg(
            stop=pl.col("start").first() + pl.col("stop").first(),
            nll=pl.col("nll").sum() / pl.col("tokens").sum(),
            tokens=pl.col("tokens").sum(),
        )
        .sort(*keys, "start")
    )


def change_at_edge(window: pl.DataFrame) -> pl.DataFrame:
    """One row per run that passed its window: mean NLL of the quarter window past the edge minus
    that of the quarter before it (`nll_change_at_window`, nats per token), and the tokens past it.

    `nll_change_beyond_window` is that of the quarter after, from 1.25 to 1.5 times the window, with
    its tokens (`tokens_beyond`). A change may also be the conversation's doing: compare with
    `nll_drift_inside`, the change from the quarter window before the last, where no edge lies. Both
    are missing if the run has no reply there.
    """
    edge, reach = pl.col("trained_window"), REACH * pl.col("trained_window")
    parts = {
        "past": (pl.col("start") >= edge) & (pl.col("start") < edge + reach),
        "beyond": (pl.col("start") >= edge + reach) & (pl.col("start") < edge + 2 * reach),
        "last": (pl.col("start") >= edge - reach) & (pl.col("start") < edge),
        "earlier": (pl.col("start") >= edge - 2 * reach) & (pl.col("start") < edge - reach),
    }
    weighted = pl.col("nll") * pl.col("tokens")
    tokens = {name: pl.col("tokens").filter(inside).sum() for name, inside in parts.items()}
    sums = [
        pl.when(tokens[name] > 0).then(weighted.filter(inside).sum() / tokens[name]).alias(name)
        for name, inside in parts.items()
    ]
    counted = tokens["past"].alias("reference_tokens")
    further = tokens["beyond"].alias("tokens_beyond")
    keys = ("run", "model", "dataset", "dialogue", "seed")
    runs = window.group_by(keys).agg(*sums, counted, further)
    return (
        runs.with_columns(
            nll_change_at_window=pl.col("past") - pl.col("last"),
            nll_change_beyond_window=pl.col("beyond") - pl.col("last"),
            nll_drift_inside=pl.col("last") - pl.col("earlier"),
        )
        .filter(pl.col("nll_change_at_window").is_not_null())
        .sort("run")
    )


def window_changes(window: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """Each change of `change_at_edge`, mean over baseline runs, per model and dataset.

    Args:
        window: what `by_token_index` gives.
        options: confidence, resamples and seed.
    """
    changes = change_at_edge(window.filter(kind="baseline"))
    rows = []
    for (model, dataset), part in changes.group_by("model", "dataset", maintain_order=True):
        for change, weight in CHANGES.items():
            known = part.filter(pl.col(change).is_not_null())
            if known.height:
                found = column_mean(known, pl.col(change), pl.col(weight), options)
                row = {"model": model, "dataset": dataset, "change": change, "mean": found.mean}
                row |= {"low": found.low, "high": found.high, "n_dialogues": found.n_dialogues}
                rows.append(row | {"n_runs": known.height})
    return pl.DataFrame(rows, table_schema("window_changes"))
