"""Whether a measure predicts the loss where it was not looked for: one group of cells left out.

For each policy, position mode, trigger and model: how well every measure orders its cells alone
(`only`), and all others without it (`without`). A single measure has nothing to fit, but

    disruption_fitted = w1 disruption_tokens + w2 disruption_positions + w3 future_attention_share

has weights, of sum 1. They are chosen on cells that are not looked at: for `only`, on the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.penalties import KIND as PENALTY
from kvfidelity.analysis.predictors import rank_correlation
from kvfidelity.analysis.within_turns import fisher_by_dialogue, with_groups
from kvfidelity.cache.positions import SHIFTED_PATTERN
from kvfidelity.records.columns import DISRUPTION, INTEGRITY

FITTED = "disruption_fitted"
#: What is left out, and the column that says which group a cell is in.
FACTORS = {"policy": "policy", "mode": "mode", "trigger": "trigger", "model": "model"}
NO_FACTOR = "none"
#: Weights of `DISRUPTION` that are tried, by their ratios.
RATIOS = (0, 1, 4, 16)
Weights = tuple[float, float, float]
WEIGHTS: list[Weights] = sorted(
    {
        (one / (one + two + three), two / (one + two + three), three / (one + two + three))
        for one, two, three in itertools.product(RATIOS, repeat=3)
        if one + two + three
    }
)
WEIGHT_COLUMNS = ("weight_tokens", "weight_positions", "weight_future")
KEPT = ("model", "dataset", "dialogue", "seed", "turn", "policy", "trigger", "excess_nll")


class Split(NamedTuple):
    """Cells that a correlation is over, and those that the weights are fitted on."""

    factor: str
    group: str
    cells: str
    looked_at: pl.DataFrame
    fitted_on: pl.DataFrame


def predictor_validation(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per model, data set, group that is left out, and measure; see the module.

    Correlations are those of `predictors`, over the turns that have a disruption, so that all
    measures are over the same; a penalty of weight 0 is left out. Empty if no run measured one.
    Modes that only differ in their shift are one group.

    Args:
        turns: the table of that name.
        options: confidence, resamples, seed.
    """
    counted = _counted(turns)
    rows = []
    for (dataset,), same in counted.group_by("dataset", maintain_order=True):
        same = with_groups(same)
        for (model,), part in same.group_by("model", maintain_order=True):
            about = {"model": model, "dataset": dataset}
            for split in _splits(part, same, str(model)):
                rows += [about | row for row in _correlations(split, options)]
    order = [pl.col(name) for name in ("model", "dataset", "factor", "group", "cells")]
    table = pl.DataFrame(rows, table_schema("predictor_validation"))
    return table.sort([*order, -pl.col("correlation").abs()], maintain_order=True)


def _counted(turns: pl.DataFrame) -> pl.DataFrame:
    weight = pl.col("parameters").str.json_path_match("$.weight").cast(pl.Float64).fill_null(1)
    known = turns.lazy().filter(
        "after_eviction",
        "inside_window",
        pl.col("excess_nll").is_not_null(),
        *(pl.col(name).is_not_null() for name in DISRUPTION),
        # They keep what the policy inside keeps, so leaving one of the two out leaves the other in.
        ~((pl.col("kind") == PENALTY) & (weight == 0)),
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
    weights = fitted_weights(split.fitted_on)
    metrics = [*INTEGRITY, *DISRUPTION]
    looked_at = split.looked_at
    if weights is not None:
        metrics.append(FITTED)
        looked_at = looked_at.with_columns(_sum(weights).alias(FITTED))
    for metric in metrics:
        found = rank_correlation(looked_at, metric, "excess_nll", options)
        if found["correlation"] is not None:
            shown = ("correlation", "low", "high", "n_dialogues", "n_turns")
            fitted = weights if metric == FITTED and weights else (None,) * len(WEIGHT_COLUMNS)
            named = dict(zip(WEIGHT_COLUMNS, fitted, strict=True))
            yield about | {"metric": metric} | named | {name: found[name] for name in shown}


def fitted_weights(rows: pl.DataFrame) -> Weights | None:
    """The weights whose sum orders the cells best, by the mean of Fisher's z over dialogues and
    models; None if none orders any."""
    best, chosen = None, None
    for weights in WEIGHTS:
        summed = rows.with_columns(_sum(weights).alias(FITTED))
        parts = [
            fisher_by_dialogue(part, FITTED, "excess_nll")["z"]
            for _, part in summed.group_by("model", maintain_order=True)
        ]
        mean = pl.concat(parts).mean() if parts else None
        if isinstance(mean, float) and (best is None or mean > best):
            best, chosen = mean, weights
    return chosen


def _sum(weights: Weights) -> pl.Expr:
    terms = [weight * pl.col(name) for weight, name in zip(weights, DISRUPTION, strict=True)]
    return pl.sum_horizontal(terms)
