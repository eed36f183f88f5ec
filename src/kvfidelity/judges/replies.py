"""Reads a run's replies for judges.

A reply of a model that computed NaN or infinity is no reply to judge. From the first turn that
shows it, replies are withheld: `reply` is None and `finish_reason` is "not_finite".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.judges.verdict import NO_HISTORY, NOT_FINITE
from kvfidelity.records.artifacts import read_parquet
from kvfidelity.records.grid import NO_THRESHOLD, RunKey, run_of_file

LIKELIHOODS = (
    "reply_nll",
    "reply_nll_baseline",
    "reply_nll_baseline_history",
    "reference_nll",
    "kl_baseline",
)


def read_turns(turns: Path) -> list[dict[str, Any]]:
    """One row per turn, with `fed_reply`: the reply that entered the cache.

    Raises:
        UserError: the artifact is missing or damaged.
    """
    return _with_fed_reply(read_parquet(turns, kind="turns"))


def read_replies(
    turns: Sequence[Path], metrics: Path, *, baseline_history: bool
) -> dict[str, list[dict[str, Any]]]:
    """The same with the text metrics, for each run of a dialogue.

    `past_window`: whether the turn ends past the trained window in this run or in its baseline,
    whose likelihood of the reply is then no measure of quality.

    Args:
        turns: of the runs, the baselines among them.
        metrics: of all of them.
        baseline_history: whether the baseline's replies are the history that a judge is shown, so
            that the replies of all runs of a dialogue are judged after the same conversation: a
            reply that follows well from a ruined history is not a good one. Where memory ran out
            for the baseline, the conversation ends: own replies of later turns are withheld, with
            the finish reason "no_history".

    Raises:
        UserError: an artifact is missing or damaged.
    """
    texts = read_parquet(metrics, kind="metrics")
    found = {
        run: _with_fed_reply(
            read_parquet(file, kind="turns").join(texts.filter(run=run).drop("run"), on="turn")
        )
        for file in turns
        for run in [run_of_file(file)]
    }
    histories = {run: found[other] for run, other in baselines_of(found).items()}
    found = {run: _with_window(rows, histories[run]) for run, rows in found.items()}
    if not baseline_history:
        return found
    return {run: _after_history(rows, histories[run]) for run, rows in found.items()}


def baselines_of(runs: Iterable[str]) -> dict[str, str]:
    """The baseline of each run of a dialogue: the one with its seed that never evicts."""
    keys = {run: RunKey.from_path(run) for run in runs}
    by_seed: dict[str, str] = {}
    for run, key in keys.items():
        if key.threshold == NO_THRESHOLD:
            by_seed.setdefault(key.seed, run)
    return {run: by_seed[key.seed] for run, key in keys.items()}


def _with_window(
    rows: list[dict[str, Any]], baseline: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    ends = {row["turn"]: row["tokens_seen_end"] or 0 for row in baseline}
    shown = []
    for row in rows:
        end = max(row["tokens_seen_end"] or 0, ends.get(row["turn"], 0))
        window = row["trained_window"]
        shown.append(row | {"past_window": window is not None and end > window})
    return shown


def _after_history(
    rows: list[dict[str, Any]], baseline: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    history = {row["turn"]: row["fed_reply"] for row in baseline}
    shown, known = [], True
    for row in rows:
        if not known and row["reply"] is not None:
            row = row | {"reply": None, "finish_reason": NO_HISTORY}
        if row["replies"] == "own":
            row = row | {"fed_reply": history.get(row["turn"])}
            known = known and row["fed_reply"] is not None
        shown.append(row)
    return shown


def _with_fed_reply(rows: pl.DataFrame) -> list[dict[str, Any]]:
    # A judge sees as history what entered the cache.
    fed_column = pl.when(pl.col("replies") == "own").then("reply").otherwise("reference")
    overflowed = (_not_finite().cast(pl.Int8).cum_max() > 0).fill_null(False)
    return (
        rows.sort("turn")
        .with_columns(fed_reply=fed_column)
        .with_columns(
            reply=pl.when(~overflowed).then("reply"),
            finish_reason=pl.when(overflowed).then(pl.lit(NOT_FINITE)).otherwise("finish_reason"),
        )
        .to_dicts()
    )


def _not_finite() -> pl.Expr:
    """Whether a likelihood of a turn is NaN or infinite."""
    finite = [pl.col(name).is_finite() for name in LIKELIHOODS]
    finite.append(pl.col("reference_token_nll").list.eval(pl.element().is_finite()).list.all())
    return ~pl.all_horizontal(each.fill_null(True) for each in finite)
