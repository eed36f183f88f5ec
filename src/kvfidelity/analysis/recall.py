"""Recall: what the model still knows, by the depth of the evidence in the dialogue.

A question is answered right if its answer is likelier than every distractor; by chance that happens
to one in four, there being three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import Cell, RecallEstimates, RecallGroup
from kvfidelity.analysis.decisions import CONTRADICTED, SUPPORTED, decide
from kvfidelity.analysis.shares import column_share
from kvfidelity.analysis.statistics import Estimate, column_mean
from kvfidelity.records.declaration import schema
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS

PAIRED = ("model", "dataset", "dialogue", "seed", "replies", "turn", "probe")
DEPTHS = ("early", "middle", "recent", "unknown")
SHARES = ("recalled", "answered")
MEANS = ("recall_lost", "margin", "margin_lost")
RECALL_STATES = ("forgotten", "kept", "unchanged", "undecided", "untested")
#: Nats per token of an answer that a reader would call a loss: a tenth of its likelihood.
MARGIN = 0.1


def questions(answers: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """Every question, paired with the same question to the baseline.

    Args:
        answers: rows of `records.columns.RECALL` and the `run` they are from; distractors may be a
            list or, without their texts, their number `n_distractors`.
        turns: the table of that name.

    Returns:
        The rows with `trigger`, `chance` (share of such questions that guessing answers),
        `after_eviction`, `inside_window` (as of turns), `recalled` (1 if the answer was chosen,
        else 0), `recall_lost` (the baseline's `recalled` minus this one's) and
        `margin_lost` (of the margin, nats per token). Losses are missing without such a run, and
        all of these where the margin is: nothing can be chosen by a likelihood that is not finite.
    """
    chosen = pl.when(pl.col("margin").is_not_null()).then("chosen")
    answered = pl.when(pl.col("margin").is_not_null()).then("answered")
    answers = answers.with_columns(chosen=chosen, answered=answered)
    baseline = answers.filter(pl.col("kind") == "baseline").select(
        *PAIRED, baseline_chosen="chosen", baseline_margin="margin"
    )
    window = turns.select("run", "turn", "trigger", "inside_window")
    recalled = pl.col("chosen").cast(pl.Float64)
    return (
        answers.join(baseline, on=list(PAIRED), how="left")
        .join(window, on=["run", "turn"], how="left")
        .with_columns(
            chance=1 / (1 + pl.col("n_distractors")),
            after_eviction=pl.col("evictions") > 0,
            recalled=recalled,
            recall_lost=pl.col("baseline_chosen").cast(pl.Float64) - recalled,
            margin_lost=pl.col("baseline_margin") - pl.col("margin"),
        )
        .drop("baseline_chosen", "baseline_margin", "n_distractors")
    )


def by_depth(answers: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per cell, origin and depth: over questions after an eviction; of the
    baseline over all.

    recalled, answered: share of questions whose answer was chosen, and whose reply in the model's
        own words held it (missing if none was generated).
    margin: mean nats per token by which the answer is ahead of the best distractor.
    recall_lost, margin_lost: paired by question with the baseline. The margin is the primary
        measure: it needs a fifth of the dialogues that the share of right answers needs.
    changed: questions that are right in one of the two and wrong in the other.
    recalled_baseline: the baseline's share of the same questions.
    evidence_retained_share: mean share of the evidence message's tokens that were still cached.

    Args:
        answers: what `questions` gives.
        options: confidence, resamples, seed.
    """
    considered = answers.filter((pl.col("kind") == "baseline") | pl.col("after_eviction"))
    keys = [*CELL_COLUMNS, "kind", "origin", "depth"]
    rows = [
        dict(zip(keys, key, strict=True)) | _estimates(part, options)
        for key, part in considered.group_by(keys, maintain_order=True)
    ]
    return pl.DataFrame(rows, schema(Cell, RecallGroup, RecallEstimates)).sort(
        *CELL_COLUMNS[:2],
        *("origin", pl.col("kind") != "baseline", "threshold", "policy"),
        *(rank_in("positions", POSITIONS), rank_in("depth", DEPTHS)),
    )


def rank_in(column: str, names: Sequence[str]) -> pl.Expr:
    """The index of each value in `names`; other values come last."""
    ranks = {name: index for index, name in enumerate(names)}
    return pl.col(column).replace_strict(ranks, default=len(names))


def _estimates(part: pl.DataFrame, options: Mapping[str, Any]) -> dict[str, Any]:
    is_baseline = part["kind"][0] == "baseline"
    found: dict[str, Any] = {}
    for name in (*SHARES, *MEANS):
        known = part.filter(pl.col(name).is_not_null())
        if known.is_empty() or (is_baseline and name.endswith("_lost")):
            continue
        found |= _estimate_columns(name, estimate(known, name, pl.col(name), options))
    budgets = part["target_tokens"].unique().to_list()
    return found | {
        "recalled_baseline": (part["recalled"] + part["recall_lost"]).mean(),
        "chance": part["chance"].mean(),
        "evidence_retained_share": part["evidence_retained_share"].mean(),
        "changed": (part["recall_lost"] != 0).sum() if not is_baseline else None,
        "n_questions": part.height,
        "n_dialogues": part["dialogue"].n_unique(),
        "budget_tokens": budgets[0] if len(budgets) == 1 else None,
    }


def estimate(
    rows: pl.DataFrame, quantity: str, value: pl.Expr, options: Mapping[str, Any]
) -> Estimate:
    """Mean over questions of `value`, which is the quantity or a difference of it.

    What is right or wrong gets the interval of a share; a `value` that is not the plain column, as
    well as `recall_lost`, that of a difference of shares.
    """
    if quantity in SHARES or quantity == "recall_lost":
        paired = quantity == "recall_lost" or value.meta.output_name() != quantity
        return column_share(rows, value, options, paired=paired)
    return column_mean(rows, value, pl.lit(1), options)


def _estimate_columns(name: str, found: Estimate) -> dict[str, Any]:
    row: dict[str, Any] = {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    if name == "margin_lost":
        row |= {"margin_lost_strict_low": found.strict_low}
        row |= {"margin_lost_strict_high": found.strict_high, "n_compared": found.n_dialogues}
    return row


def recall_statements(table: pl.DataFrame) -> list[dict[str, Any]]:
    """What the page says in words: one entry per policy, threshold and origin, position modes that
    come out alike together.

    Each entry has `modes`, `every_mode` (no other mode came out otherwise) and, by state (see
    `recall_state`), its depths: name, `recalled` (of each mode), `baseline` and `n` questions.
    """
    keys = ["model", "dataset", "origin", "threshold", "policy"]
    baseline = table.filter(pl.col("kind") == "baseline").to_dicts()
    baseline_row = {tuple(row[name] for name in (*keys[:3], "depth")): row for row in baseline}
    entries = []
    evicting = table.filter(pl.col("kind") != "baseline")
    for key, part in evicting.group_by(keys, maintain_order=True):
        modes_by_states: dict[tuple[Any, ...], list[list[dict[str, Any]]]] = {}
        for mode in POSITIONS:
            rows = part.filter(pl.col("positions") == mode).to_dicts()
            states = tuple(
                (row["depth"], recall_state(row, baseline_row.get((*key[:3], row["depth"]))))
                for row in rows
            )
            if rows:
                modes_by_states.setdefault(states, []).append(rows)
        for states, modes in modes_by_states.items():
            depths_by_state: dict[str, list[dict[str, Any]]] = {name: [] for name in RECALL_STATES}
            for index, (depth, depth_state) in enumerate(states):
                one = modes[0][index]
                shares = [rows[index]["recalled"] for rows in modes]
                depths_by_state[depth_state].append(
                    {"depth": depth, "recalled": shares, "baseline": one["recalled_baseline"]}
                    | {"n": one["n_questions"]}
                )
            entry: dict[str, Any] = dict(zip(keys, key, strict=True))
            entry["modes"] = [rows[0]["positions"] for rows in modes]
            entries.append(
                entry | {"every_mode": len(modes_by_states) == 1, "depths": depths_by_state}
            )
    return entries


def recall_state(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """The state of one row of `by_depth`; `baseline` is the baseline's row of the same depth.

    "untested": with nothing evicted the model itself is not surely above chance, so that there is
    little to forget. "forgotten", "kept": the margin that is lost is surely above or below MARGIN,
    as `decide` has it. "unchanged": no answer changed, but a loss cannot be ruled out. Else
    "undecided".
    """
    if baseline is None or at_chance(baseline["recalled_low"], baseline["chance"]):
        return "untested"
    ends = {"low": row["margin_lost_low"], "high": row["margin_lost_high"]}
    ends |= {"strict_low": row["margin_lost_strict_low"]}
    ends |= {"strict_high": row["margin_lost_strict_high"], "n_dialogues": row["n_compared"] or 0}
    lost, _ = decide("above", MARGIN, ends)
    if lost == SUPPORTED:
        return "forgotten"
    if lost == CONTRADICTED:
        return "kept"
    return "unchanged" if row["changed"] == 0 else "undecided"


def at_chance(recalled_low: float | None, chance: float) -> bool:
    """Whether guessing cannot be ruled out, `recalled_low` being the lower end of an interval."""
    return recalled_low is None or recalled_low <= chance
