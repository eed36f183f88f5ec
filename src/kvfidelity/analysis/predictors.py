"""How well each integrity metric predicts the loss: rank correlations with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean
from kvfidelity.analysis.within_turns import fisher_by_dialogue, with_groups

ENDS = ("low", "high", "strict_low", "strict_high")


def predictors(
    turns: pl.DataFrame, metrics: tuple[str, ...], options: Mapping[str, Any]
) -> pl.DataFrame:
    """Rank correlation of each metric with excess NLL among the cells of one dialogue and turn.

    One row per model, data set and metric, the strongest first; metrics that do not vary within
    turns are left out. Turns after an eviction and inside the window count.
    """
    rows = []
    for (model, dataset), part in counted_turns(turns, metrics).group_by(
        "model", "dataset", maintain_order=True
    ):
        part = with_groups(part)
        for metric in metrics:
            found = rank_correlation(part, metric, "excess_nll", options)
            if found["correlation"] is not None:
                about = {"model": model, "dataset": dataset, "metric": metric}
                rows.append(about | {name: found[name] for name in found if name not in ENDS[2:]})
    order = [pl.col("model"), pl.col("dataset"), -pl.col("correlation").abs()]
    return pl.DataFrame(rows, table_schema("predictors")).sort(order)


def counted_turns(turns: pl.DataFrame, metrics: tuple[str, ...]) -> pl.DataFrame:
    """The turns that `predictors` is over, with these columns."""
    has_excess = pl.col("excess_nll").is_not_null()
    columns = ("model", "dataset", "dialogue", "seed", "turn", "excess_nll", *metrics)
    chosen = turns.lazy().filter("after_eviction", "inside_window", has_excess)
    return chosen.select(columns).collect()


def rank_correlation(
    rows: pl.DataFrame, one: str, other: str, options: Mapping[str, Any]
) -> dict[str, float | int | None]:
    """Spearman's correlation among the cells of one dialogue and turn, see `within_turns`.

    Averaged over dialogues on Fisher's scale, with the interval of that mean.

    Args:
        rows: one model's and data set's, with `dialogue`, `seed`, `turn` and both columns.
        options: confidence, resamples and seed.

    Returns:
        correlation, low, high, strict_low, strict_high: None where they are not defined, as where
        one of the two does not vary within turns; sign, see `Estimate`; n_dialogues, n_turns.
    """
    by_dialogue = fisher_by_dialogue(rows, one, other)
    found = column_mean(by_dialogue, pl.col("z"), pl.lit(1), options)
    ends = {"correlation": found.mean} | {name: getattr(found, name) for name in ENDS}
    scaled = {name: None if z is None else math.tanh(z) for name, z in ends.items()}
    counts = {"n_dialogues": by_dialogue.height, "n_turns": int(by_dialogue["n_turns"].sum())}
    return scaled | counts | {"sign": found.sign}
