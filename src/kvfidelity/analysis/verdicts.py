"""Judges' verdicts on a run's replies, summed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.recall import rank_in
from kvfidelity.analysis.statistics import column_mean
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS

KEYS = ("judge", *CELL_COLUMNS)


def verdict_means(verdicts: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per judge and cell: the mean score, and how many replies have no score.

    Args:
        verdicts: the table of that name; without a column if no judge was run.
        options: confidence, resamples and seed.
    """
    rows = []
    parts = verdicts.filter(pl.col("status") != "no_reply") if verdicts.height else verdicts
    for key, part in parts.group_by(KEYS) if parts.height else ():
        scored = part.filter(pl.col("status") == "ok")
        found = column_mean(scored, pl.col("score"), pl.lit(1), options)
        row = dict(zip(KEYS, key, strict=True))
        row |= {"mean": found.mean, "low": found.low, "high": found.high}
        row |= {"n": scored.height, "n_dialogues": found.n_dialogues}
        row |= {"missing": part.height - scored.height}
        cut = part.filter(pl.col("messages_cut") > 0)
        rows.append(row | {"history_cut": cut.height, "messages_cut": cut["messages_cut"].sum()})
    table = pl.DataFrame(rows, table_schema("verdict_means"))
    places = ("model", "dataset", "threshold", "policy")
    return table.sort(*places, rank_in("positions", POSITIONS), "judge")


def missing_verdicts(verdicts: pl.DataFrame) -> pl.DataFrame:
    """How many replies have no score, by judge, reason and turn; turns without a reply do not
    count."""
    schema = table_schema("missing_verdicts")
    if verdicts.is_empty():
        return pl.DataFrame(schema=schema)
    judged = verdicts.filter(pl.col("status") != "no_reply")
    of_turn = judged.group_by("judge", "turn").agg(replies=pl.len().cast(pl.Int64))
    missing = judged.filter(pl.col("status") != "ok")
    counts = missing.group_by("judge", "status", "turn").agg(missing=pl.len().cast(pl.Int64))
    return (
        counts.join(of_turn, on=["judge", "turn"])
        .select(list(schema))
        .sort("judge", "status", "turn")
    )


def missing_by_cell(verdicts: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per judge and setting: whether some cells miss more verdicts than others.

    A mean over the verdicts that are there can then differ between cells without any difference
    between replies. `p` is that of Cochran's Q (Biometrika 1950) over the turns that every cell has
    a reply to, by permutation of the cells within each turn. Without a missing verdict there is no
    row.

    Args:
        verdicts: the table of that name; without a column if no judge was run.
        options: confidence, resamples and seed.
    """
    schema = table_schema("missing_by_cell")
    if verdicts.is_empty():
        return pl.DataFrame(schema=schema)
    judged = verdicts.filter(pl.col("status") != "no_reply").with_columns(
        absent=(pl.col("status") != "ok").cast(pl.Int8),
        cell=pl.concat_str("policy", "positions", "threshold", separator=" "),
    )
    keys = ("judge", "model", "dataset")
    rows = []
    for key, part in judged.group_by(keys):
        if not part["absent"].sum():
            continue
        of_cell = part.group_by("cell").agg(share=pl.col("absent").mean()).sort("share", "cell")
        blocks = part.pivot("cell", index=["dialogue", "seed", "turn"], values="absent")
        paired = blocks.drop("dialogue", "seed", "turn").drop_nulls().to_numpy()
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "fewest": of_cell["cell"][0],
                "fewest_share": of_cell["share"][0],
                "most": of_cell["cell"][-1],
                "most_share": of_cell["share"][-1],
                "turns": len(paired),
                "p": _p_of_equal_columns(paired, options),
            }
        )
    return pl.DataFrame(rows, schema).sort(keys)


def _p_of_equal_columns(blocks: np.ndarray[Any, Any], options: Mapping[str, Any]) -> float | None:
    """P of Cochran's Q by permutation; None if no block tells the columns apart.

    Args:
        blocks: 0 or 1, [turns, cells].
    """
    mixed = blocks[(blocks.sum(1) > 0) & (blocks.sum(1) < blocks.shape[1])].astype(np.float64)
    if not len(mixed):
        return None
    rng = np.random.default_rng(options["seed"])
    # With fixed sums of the rows, Q grows with the squares of the columns' sums.
    found = np.square(mixed.sum(0)).sum()
    drawn = [
        np.square(rng.permuted(mixed, axis=1).sum(0)).sum() for _ in range(options["resamples"])
    ]
    return float((1 + np.sum(np.array(drawn) >= found)) / (1 + len(drawn)))
