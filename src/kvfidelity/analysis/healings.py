"""Each healing against nothing (open question 4 of arXiv 2511.04686)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean, holm
from kvfidelity.records.grid import CELL_COLUMNS

PAIRED = ("dialogue", "seed", "turn")
ASKED = (*PAIRED, "probe")
NONE = "none"


def healings(
    turns: pl.DataFrame, questions: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per cell with a healing: what it changes against the cell that differs in this alone.

    The primary measure is early_excess_nll, inside the trained window. Holm's method adjusts p over
    the healings of one policy, threshold and position mode.

    Args:
        turns, questions: the tables `turns` and `recall`.
        options: confidence, resamples, seed.
    """
    names = _healing_of(turns)
    rows: list[dict[str, Any]] = []
    for (setting, _), cells in names.items():
        without = cells.pop(NONE, None)
        if without is None:
            continue
        family = [
            row
            for healing, policy in sorted(cells.items())
            for row in _against(turns, questions, setting, policy, without, options)
            for row in [row | {"healing": healing}]
        ]
        adjusted = holm([row["p"] for row in family])
        rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return pl.DataFrame(rows, table_schema("healings"))


def _healing_of(
    turns: pl.DataFrame,
) -> dict[tuple[tuple[str, ...], str], dict[str, str]]:
    """Policies by healing, for each setting and each kind with its parameters."""
    setting = ("model", "dataset", "positions", "threshold")
    found: dict[tuple[tuple[str, ...], str], dict[str, str]] = {}
    cells = turns.select(*setting, "kind", "parameters", "policy").unique(maintain_order=True)
    for *where, kind, parameters, policy in cells.sort(cells.columns).rows():
        own = json.loads(parameters or "{}")
        healing = own.pop("healing", NONE)
        key = json.dumps([kind, own], sort_keys=True)
        found.setdefault((tuple(where), key), {}).setdefault(healing, policy)
    return found


def _against(
    turns: pl.DataFrame,
    questions: pl.DataFrame,
    setting: tuple[str, ...],
    policy: str,
    without: str,
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    model, dataset, positions, threshold = setting
    where = {"model": model, "dataset": dataset, "positions": positions, "threshold": threshold}
    scored = turns.filter("inside_window", **where)
    early = _paired(scored, policy, without, "early_excess_nll", PAIRED)
    if early.is_empty():
        return
    found = column_mean(early, pl.col("value") - pl.col("other"), pl.lit(1), options)
    whole = _paired(
        scored.filter("after_eviction"), policy, without, "excess_nll", PAIRED, "reference_tokens"
    )
    excess = column_mean(
        whole, pl.col("value") - pl.col("other"), pl.col("reference_tokens"), options
    )
    asked = questions.filter("evicted", "after_eviction", **where)
    sure = _paired(asked, policy, without, "overconfidence", ASKED)
    over = column_mean(sure, pl.col("value") - pl.col("other"), pl.lit(1), options)
    own = asked.filter(pl.col("policy") == policy)
    cell = dict(zip(CELL_COLUMNS, (model, dataset, policy, positions, threshold), strict=True))
    yield cell | {
        "against": without,
        "early_excess_nll": early["value"].mean(),
        "early_excess_nll_without": early["other"].mean(),
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "n_dialogues": found.n_dialogues,
        "n_turns": found.n_turns,
        "excess_difference": excess.mean,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "confidence_evicted": own["confidence"].mean(),
        "recalled_evicted": own["recalled"].mean(),
        "overconfidence_difference": over.mean,
        "overconfidence_low": over.low,
        "overconfidence_high": over.high,
        "n_evicted": sure.height,
    }


def _paired(
    rows: pl.DataFrame, policy: str, without: str, column: str, keys: tuple[str, ...], *more: str
) -> pl.DataFrame:
    """Rows of both cells that have a value, as `value` and `other`."""
    known = rows.filter(pl.col(column).is_not_null())
    own = known.filter(pl.col("policy") == policy).select(*keys, *more, value=column)
    other = known.filter(pl.col("policy") == without).select(*keys, other=column)
    return own.join(other, on=list(keys), maintain_order="left")
