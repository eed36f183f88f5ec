"""Judges' verdicts on a run's replies, summed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.pairs import PAIRED, compared_turns, unpaired_turns, with_baseline
from kvfidelity.analysis.recall import rank_in
from kvfidelity.analysis.statistics import column_mean
from kvfidelity.judges.comparison import SAME
from kvfidelity.records.grid import BASELINE, CELL_COLUMNS, POSITIONS

#: Statuses of a verdict or comparison that is not missing.
GIVEN = ("ok", SAME)
#: What names a cell, besides what a run shares with its baseline.
OF_CELL = tuple(name for name in CELL_COLUMNS if name not in PAIRED)


def verdict_means(
    verdicts: pl.DataFrame, turns: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per judge and cell: the mean score over replies after an eviction, of the baseline
    over the same turns; the paired difference from the baseline; and how many replies have no
    score.

    Args:
        verdicts, turns: the tables of these names; verdicts without a column if no judge was run.
        options: confidence, resamples and seed.
    """
    schema = table_schema("verdict_means")
    if verdicts.is_empty():
        return pl.DataFrame(schema=schema)
    known = turns.select("run", *PAIRED, *OF_CELL, "kind", "after_eviction", "finish_reason")
    score = pl.when(pl.col("status") == "ok").then("score")
    rows = []
    for (judge,), given in verdicts.group_by("judge"):
        judged = given.select("run", "turn", "status", "messages_cut", score=score)
        scored = known.join(judged, on=["run", "turn"], how="left", maintain_order="left")
        scored = scored.drop("run")
        unpaired = unpaired_turns(scored, pl.col("score").is_not_null())
        compared = compared_turns(scored).filter(pl.col("status") != "no_reply")
        pairs = with_baseline(compared, "score")
        by_cell = dict(pairs.group_by(CELL_COLUMNS))
        for key, part in compared.group_by(CELL_COLUMNS):
            row = {"judge": judge} | dict(zip(CELL_COLUMNS, key, strict=True))
            found = column_mean(part.drop_nulls("score"), pl.col("score"), pl.lit(1), options)
            row |= {"mean": found.mean, "low": found.low, "high": found.high}
            row |= {"n": found.n_turns, "n_dialogues": found.n_dialogues}
            row |= {"missing": part["score"].null_count()}
            if part["kind"][0] != BASELINE:
                both = by_cell.get(key, pairs.clear())
                change = pl.col("score") - pl.col("baseline_value")
                found = column_mean(both, change, pl.lit(1), options)
                row |= {"difference": found.mean}
                row |= {"difference_low": found.low, "difference_high": found.high}
                row |= {"n_pairs": both.height, "n_unpaired": unpaired.get(key, 0)}
            cut = part.filter(pl.col("messages_cut") > 0)
            row |= {"history_cut": cut.height, "messages_cut": cut["messages_cut"].sum()}
            rows.append(row)
    places = ("model", "dataset", "threshold", "policy")
    table = pl.DataFrame(rows, schema)
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


def missing_by_cell(
    verdicts: pl.DataFrame, options: Mapping[str, Any], table: str = "missing_by_cell"
) -> pl.DataFrame:
    """One row per judge and setting: whether some cells miss more verdicts than others.

    A mean over the verdicts that are there can then differ between cells without any difference
    between replies. `p` is that of Cochran's Q (Biometrika 1950) over the turns that every cell has
    a reply to, by permutation of the cells within each dialogue: its turns are not independent.
    Without a missing verdict there is no row.

    Args:
        verdicts: the table of that name, without a column if no judge was run; or comparisons of
            runs with their baselines, which are then the cells.
        options: confidence, resamples and seed.
        table: the name of the table that is made.
    """
    schema = table_schema(table)
    if verdicts.is_empty():
        return pl.DataFrame(schema=schema)
    judged = verdicts.filter(pl.col("status") != "no_reply").with_columns(
        absent=(~pl.col("status").is_in(GIVEN)).cast(pl.Int64),
        cell=pl.concat_str("policy", "positions", "threshold", separator=" "),
    )
    keys = ("judge", "model", "dataset")
    rows = []
    for key, part in judged.group_by(keys):
        if not part["absent"].sum():
            continue
        of_cell = part.group_by("cell").agg(share=pl.col("absent").mean()).sort("share", "cell")
        blocks = part.pivot("cell", index=["dialogue", "seed", "turn"], values="absent")
        blocks = blocks.drop_nulls()
        # Seeds of one dialogue are one observation too.
        sums = blocks.drop("seed", "turn").group_by("dialogue", maintain_order=True).sum()
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "fewest": of_cell["cell"][0],
                "fewest_share": of_cell["share"][0],
                "most": of_cell["cell"][-1],
                "most_share": of_cell["share"][-1],
                "turns": blocks.height,
                "p": _p_of_equal_columns(sums.drop("dialogue").to_numpy(), options),
            }
        )
    return pl.DataFrame(rows, schema).sort(keys)


def _p_of_equal_columns(blocks: np.ndarray[Any, Any], options: Mapping[str, Any]) -> float | None:
    """P of Cochran's Q by permutation; None if no block tells the columns apart.

    Args:
        blocks: how many verdicts are missing, [dialogues, cells].
    """
    mixed = blocks[np.ptp(blocks, axis=1) > 0].astype(np.float64)
    if not len(mixed):
        return None
    rng = np.random.default_rng(options["seed"])
    # With fixed sums of the rows, Q grows with the squares of the columns' sums.
    found = np.square(mixed.sum(0)).sum()
    drawn = [
        np.square(rng.permuted(mixed, axis=1).sum(0)).sum() for _ in range(options["resamples"])
    ]
    return float((1 + np.sum(np.array(drawn) >= found)) / (1 + len(drawn)))
