"""What a penalty for disruption is worth: the same policy with a weight and without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean, holm

KIND = "disruption_penalty"
PAIRED = ("dialogue", "seed", "turn")
SETTING = ("model", "dataset", "threshold", "positions")


def penalties(turns: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """Excess NLL of each policy of kind disruption_penalty minus that of the one of weight 0 with
    the same other parameters, on the same turns; empty if there is no such pair.

    Holm's method adjusts p over the weights and position modes of one model, data set and
    threshold.

    Args:
        turns: the table of that name.
        options: confidence, resamples, seed.
    """
    scored = turns.filter(
        "after_eviction", "inside_window", pl.col("excess_nll").is_not_null(), kind=KIND
    )
    rows = []
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, part in scored.group_by(SETTING, maintain_order=True):
        identity = dict(zip(SETTING, key, strict=True))
        weights = _weights(part)
        for name, (weight, rest) in weights.items():
            zero = next((n for n, found in weights.items() if found == (0.0, rest)), None)
            if not weight or zero is None:
                continue
            one, other = (part.filter(policy=policy) for policy in (name, zero))
            pairs = one.join(other.select(*PAIRED, other="excess_nll"), on=PAIRED)
            if pairs.is_empty():
                continue
            loss = pl.col("excess_nll") - pl.col("other")
            found = column_mean(pairs, loss, pl.col("reference_tokens"), options)
            row = {"policy": name, "against": zero, "weight": weight}
            families.setdefault(key[:3], []).append(identity | row | asdict(found))
    for family in families.values():
        adjusted = holm([row["p"] for row in family])
        rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    schema = table_schema("penalties")
    return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema)


def _weights(part: pl.DataFrame) -> dict[str, tuple[float, str]]:
    """By policy: its weight, and its other parameters as JSON."""
    found = {}
    for policy, text in part.select("policy", "parameters").unique(maintain_order=True).rows():
        parameters = json.loads(text)
        weight = float(parameters.pop("weight", 1.0))
        found[policy] = (weight, json.dumps(parameters, sort_keys=True))
    return dict(sorted(found.items()))
