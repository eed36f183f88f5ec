"""Whether a measure predicts the loss where it was not looked for: one group of cells left out.

For each policy, position mode, trigger and model: how well every measure orders its cells alone
(`only`), and all others without it (`without`). A measure of positions has nothing to fit, but the
sum of both disruptions has one weight w,

    disruption_fitted = (1 - w) disruption_tokens + w disruption_positions

which is chosen on the cells that are not looked at: for `only`, on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.predictors import rank_correlation
from kvfidelity.analysis.within_turns import fisher_by_dialogue
from kvfidelity.cache.positions import SHIFTED_PATTERN
from kvfidelity.records.columns import DISRUPTION, INTEGRITY

FITTED = "disruption_fitted"
#: What is left out, and the column that says which group a cell is in.
FACTORS = {"policy": "policy", "mode": "mode", "trigger": "trigger", "model": "model"}
NO_FACTOR = "none"
#: Weights of positions that are tried; the steps are even on the scale of their odds.
WEIGHTS = (0.0, *(1 / (1 + np.exp2(np.arange(6.0, -7.0, -1.0)))), 1.0)
KEPT = ("model", "dataset", "dialogue", "seed", "turn", "policy", "trigger", "excess_nll")


class Split(NamedTuple):
    """Cells that a correlation is over, and those that the weight is fitted on."""

    factor: str
    group: str
    cells: str
    looked_at: pl.DataFrame
    fitted_on: pl.DataFrame


def predictor_validation(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per model, data set, group that is left out, and measure; see the module.

    Correlations are those of `predictors`, over the turns that have a disruption, so that all
    measures are over the same. Empty if no run measured one. Modes that only differ in their shift
    are one group.

    Args:
        turns: the table of that name.
        options: confidence, resamples, seed.
    """
    counted = _counted(turns)
    rows = []
    for (dataset,), same in counted.group_by("dataset", maintain_order=True):
        for (model,), part in same.group_by("model", maintain_order=True):
            about = {"model": model, "dataset": dataset}
            for split in _splits(part, same, str(model)):
                rows += [about | row for row in _correlations(split, options)]
    order = [pl.col(name) for name in ("model", "dataset", "factor", "group", "cells")]
    table = pl.DataFrame(rows, table_schema("predictor_validation"))
    return table.sort([*order, -pl.col("correlation").abs()], maintain_order=True)


def _counted(turns: pl.DataFrame) -> pl.DataFrame:
    known = turns.lazy().filter(
        "after_eviction",
        "inside_window",
        pl.col("excess_nll").is_not_null(),
        pl.col("disruption_tokens").is_not_null(),
        pl.col("disruption_positions").is_not_null(),
    )
    mode = pl.col("positions").str.replace(f"^{SHIFTED_PATTERN}$", "shifted")
    return known.select(*KEPT, *INTEGRITY, *DISRUPTION, mode=mode).collect()


def _splits(part: pl.DataFrame, same: pl.DataFrame, model: str) -> Iterator[Split]:
    """The splits of one model's cells; `same` has those of all models on the same data set."""
    yield Split(NO_FACTOR, "", "all", part, part)
    for factor, column in FACTORS.items():
        if factor == "model":
            others = same.filter(pl.col("model") != model)
            if others.height:
                yield Split(factor, model, "only", part, others)
            continue
        groups = part[column].unique().sort().to_list()
        for group in groups if len(groups) > 1 else ():
            inside, outside = (
                part.filter(condition)
                for condition in (pl.col(column) == group, pl.col(column) != group)
            )
            yield Split(factor, group, "only", inside, outside)
            yield Split(factor, group, "without", outside, outside)


def _correlations(split: Split, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    about = {"factor": split.factor, "group": split.group, "cells": split.cells}
    weight = fitted_weight(split.fitted_on)
    metrics: dict[str, float | None] = dict.fromkeys((*INTEGRITY, *DISRUPTION))
    looked_at = split.looked_at
    if weight is not None:
        metrics[FITTED] = weight
        looked_at = looked_at.with_columns(_sum(weight).alias(FITTED))
    for metric, fitted in metrics.items():
        found = rank_correlation(looked_at, metric, "excess_nll", options)
        if found["correlation"] is not None:
            shown = ("correlation", "low", "high", "n_dialogues", "n_turns")
            yield about | {"metric": metric, "weight": fitted} | {n: found[n] for n in shown}


def fitted_weight(rows: pl.DataFrame) -> float | None:
    """The weight of positions whose sum orders the cells best, by the mean of Fisher's z over
    dialogues and models; of equal ones the smallest. None if none orders any."""
    best, chosen = None, None
    for weight in WEIGHTS:
        summed = rows.with_columns(_sum(weight).alias(FITTED))
        parts = [
            fisher_by_dialogue(part, FITTED, "excess_nll")["z"]
            for _, part in summed.group_by("model", maintain_order=True)
        ]
        mean = pl.concat(parts).mean() if parts else None
        if isinstance(mean, float) and (best is None or mean > best):
            best, chosen = mean, float(weight)
    return chosen


def _sum(weight: float) -> pl.Expr:
    tokens, positions = pl.col("disruption_tokens"), pl.col("disruption_positions")
    return (1 - weight) * tokens + weight * positions
