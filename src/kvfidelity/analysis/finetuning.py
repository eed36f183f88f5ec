"""What fine-tuning on evicted states changes (open question 2 of arXiv 2511.04686).

Models that are fine-tuned from one base are its arms. Their losses are compared as they are, not
over their own baselines: a training may change what a model loses without any eviction too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean
from kvfidelity.cache.positions import PositionMode
from kvfidelity.records.arms import CONTROL_OF, NO_ARM
from kvfidelity.records.grid import BASELINE

#: Positions of the alternative without a training.
REROTATED = PositionMode.REROTATED.value
PAIRED = ("dataset", "policy", "positions", "threshold", "dialogue", "seed", "turn", "probe")
SETTING = ("model", "dataset", "policy", "threshold", "positions")
#: Measures by name: the column, the depth of questions, and whether a reference token counts one.
MEASURES: dict[str, tuple[str, str | None]] = {
    "reference_nll": ("reference_nll", None),
    "margin_early": ("margin", "early"),
    "margin_middle": ("margin", "middle"),
    "margin_recent": ("margin", "recent"),
    "own_repetition": ("rep_3", None),
}
NO_PROBE = pl.lit(-1, pl.Int32)


def with_arms(rows: pl.DataFrame, models: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Add `base_model`, `arm` and `training_seed` to a table with a column `model`.

    Args:
        models: by name, with `adapter` (`base`, `arm`, `seed`) where it is fine-tuned.
    """
    adapters = {name: entry["adapter"] for name, entry in models.items() if entry.get("adapter")}
    known = pl.DataFrame(
        [
            {
                "model": name,
                "base_model": one["base"],
                "arm": one["arm"],
                "training_seed": one["seed"],
            }
            for name, one in adapters.items()
        ],
        {"model": pl.String, "base_model": pl.String, "arm": pl.String, "training_seed": pl.Int64},
    )
    return rows.join(known, on="model", how="left", maintain_order="left").with_columns(
        base_model=pl.coalesce("base_model", "model"), arm=pl.col("arm").fill_null(NO_ARM)
    )


def averaged_over_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of fine-tuned models and their bases, one for all trainings of an arm.

    What is measured of a turn or a question is averaged over the seeds of the training, so that a
    dialogue counts once. `model` is the base, `n_seeds` the number of trainings.

    Args:
        rows: with `base_model` and `arm`, one row per turn or question; `probe` is -1 for turns.
    """
    trained = rows.filter(pl.col("arm") != NO_ARM)["base_model"].unique()
    keys = ["model", "arm", *PAIRED]
    chosen = rows.filter(pl.col("base_model").is_in(trained.implode()))
    own = pl.col("model")
    chosen = chosen.with_columns(trained_model=own, model=pl.col("base_model"))
    rest = [name for name in chosen.columns if name not in (*keys, "trained_model")]
    means = [
        pl.col(name).mean() if chosen.schema[name].is_float() else pl.col(name).first()
        for name in rest
    ]
    return chosen.group_by(keys, maintain_order=True).agg(
        *means, n_seeds=pl.col("trained_model").n_unique()
    )


def finetuning(
    turns: pl.DataFrame, questions: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per cell, arm, measure and what the arm is compared with; empty without trainings.

    An arm is compared with the base model and with its loss's control in the same cell, and with
    the base model in the cell whose positions are rerotated. In cells of the baseline the
    difference in reference_nll is the tax: what a training costs where nothing is evicted.

    Args:
        turns, questions: the tables `turns`, with arms, and `recall`.
        options: confidence, resamples, seed.
    """
    rows = list(_rows(turns, questions, options))
    return pl.DataFrame(rows, table_schema("finetuning"))


def _rows(
    turns: pl.DataFrame, questions: pl.DataFrame, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    if turns.filter(pl.col("arm") != NO_ARM).is_empty():
        return
    reached = (pl.col("after_eviction") | (pl.col("kind") == BASELINE)) & pl.col("inside_window")
    arms = turns.unique("model").select("model", "base_model", "arm")
    of_turns = averaged_over_seeds(turns.filter(reached).with_columns(probe=NO_PROBE))
    of_questions = averaged_over_seeds(questions.join(arms, on="model"))
    for measure, (column, depth) in MEASURES.items():
        source = of_turns if depth is None else of_questions.filter(depth=depth)
        if column not in source.columns:
            continue
        known = source.filter(pl.col(column).is_not_null())
        for key, cell in known.sort(SETTING).group_by(SETTING, maintain_order=True):
            setting = dict(zip(SETTING, key, strict=True))
            for arm in sorted(cell["arm"].unique()):
                own = cell.filter(arm=arm)
                for against, positions in _alternatives(arm, setting["positions"]):
                    other = known.filter(arm=against, **setting | {"positions": positions})
                    row = _compared(own, other, column, options)
                    if row is not None:
                        names = {"arm": arm, "measure": measure, "against": against}
                        yield setting | names | {"against_positions": positions} | row


def _alternatives(arm: str, positions: str) -> list[tuple[str, str]]:
    """Arms and positions that an arm's cell is compared with."""
    found = [(NO_ARM, positions), (NO_ARM, REROTATED)]
    if arm in CONTROL_OF:
        found.insert(1, (CONTROL_OF[arm], positions))
    return [pair for pair in dict.fromkeys(found) if pair != (arm, positions)]


def _compared(
    own: pl.DataFrame, other: pl.DataFrame, column: str, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    keys = ["dialogue", "seed", "turn", "probe"]
    pairs = own.join(
        other.select(*keys, other=column, other_seeds="n_seeds"), on=keys, maintain_order="left"
    )
    if pairs.is_empty():
        return None
    per_token = column == "reference_nll"
    weight = pl.col("reference_tokens") if per_token else pl.lit(1)
    difference = column_mean(pairs, pl.col(column) - pl.col("other"), weight, options)
    return {
        "n_seeds": pairs["n_seeds"].min(),
        "value": column_mean(pairs, pl.col(column), weight, options).mean,
        "against_value": column_mean(pairs, pl.col("other"), weight, options).mean,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "n_dialogues": difference.n_dialogues,
        "n_turns": difference.n_turns,
    }
