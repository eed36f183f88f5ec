"""What is still known of what was said: recall by the depth at which it was said.

A question is answered right if its answer is likelier than every distractor; by chance that happens
to one in four, there being three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.analysis.statistics import Estimate, clustered_mean, clustered_share, holm
from kvfidelity.grid import POSITIONS

CELL = ("model", "dataset", "policy", "positions", "threshold")
PAIRED = ("model", "dataset", "dialogue", "seed", "replies", "turn", "probe")
DEPTHS = ("gist", "middle", "recent", "unknown")
#: What a person reads; left in the artifacts.
TEXTS = ("question", "answer", "distractors", "reply", "distractor_nll")
SHARES = ("recalled", "answered")
MEANS = ("recall_lost", "margin", "margin_lost")
SCHEMA: dict[str, Any] = {
    **dict.fromkeys((*CELL, "kind", "origin", "depth"), pl.String),
    **{name + part: pl.Float64 for name in (*SHARES, *MEANS) for part in ("", "_low", "_high")},
    **dict.fromkeys(("p", "effect"), pl.Float64),
    **dict.fromkeys(("recalled_full", "chance", "told_cached_share"), pl.Float64),
    **dict.fromkeys(("changed", "n_questions", "n_dialogues", "budget_tokens"), pl.Int64),
}
STATES = ("forgotten", "kept", "unchanged", "undecided", "untested")
#: Share of recall that a reader would call a loss.
MARGIN = 0.1


def questions(asked: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """Every question beside the same question put to the never evicted run.

    Args:
        asked: rows of `session.rows.RECALL` and the `run` they are from; distractors may be a
            list or, without their texts, their number `n_distractors`.
        turns: the table of that name.

    Returns:
        The rows with `trigger`, `chance` (share of such questions that guessing answers),
        `after_eviction`, `inside_window` (as of turns), `recalled` (1 if the answer was chosen,
        else 0), `recall_lost` (the never evicted run's `recalled` minus this one's) and
        `margin_lost` (of the margin, nats per token). Losses are missing without such a run, and
        all of these where the margin is: nothing can be chosen by a likelihood that is not finite.
    """
    chosen = pl.when(pl.col("margin").is_not_null()).then("chosen")
    asked = asked.with_columns(chosen=chosen)
    never = asked.filter(pl.col("kind") == "baseline").select(
        *PAIRED, full_chosen="chosen", full_margin="margin"
    )
    inside = pl.col("tokens_seen_end") <= pl.col("trained_window")
    window = turns.select("run", "turn", "trigger", inside_window=inside)
    recalled = pl.col("chosen").cast(pl.Float64)
    return (
        asked.join(never, on=list(PAIRED), how="left")
        .join(window, on=["run", "turn"], how="left")
        .with_columns(
            chance=1 / (1 + pl.col("n_distractors")),
            after_eviction=pl.col("evictions") > 0,
            recalled=recalled,
            recall_lost=pl.col("full_chosen").cast(pl.Float64) - recalled,
            margin_lost=pl.col("full_margin") - pl.col("margin"),
        )
        .drop("full_chosen", "full_margin", "n_distractors")
    )


def by_depth(asked: pl.DataFrame, options: Mapping[str, Any]) -> pl.DataFrame:
    """One row per cell, origin and depth: over questions asked after an eviction, and all of the
    never evicted run.

    recalled, answered: share of questions whose answer was chosen, and whose reply in the model's
        own words held it (missing if no reply was asked for).
    margin: mean nats per token by which the answer is ahead of the best distractor.
    recall_lost, margin_lost: paired by question with the never evicted run; p and effect are of
        `margin_lost`, p_holm adjusted over the table.
    changed: questions that are right in one of the two and wrong in the other.
    recalled_full: the never evicted run's share of the same questions.
    told_cached_share: mean share of the telling message's tokens that were still cached.

    Args:
        asked: what `questions` gives.
        options: confidence, resamples, seed.
    """
    counted = asked.filter((pl.col("kind") == "baseline") | pl.col("after_eviction"))
    keys = [*CELL, "kind", "origin", "depth"]
    rows = [
        dict(zip(keys, key, strict=True)) | _summed_up(part, options)
        for key, part in counted.group_by(keys, maintain_order=True)
    ]
    table = pl.DataFrame(rows, SCHEMA).sort(
        *CELL[:2],
        *("origin", pl.col("kind") != "baseline", "threshold", "policy"),
        *(rank("positions", POSITIONS), rank("depth", DEPTHS)),
    )
    return table.with_columns(p_holm=pl.Series(holm(table["p"].to_list()), dtype=pl.Float64))


def rank(column: str, names: Sequence[str]) -> pl.Expr:
    """The place of each value among `names`; of others, after all."""
    ranks = {name: rank for rank, name in enumerate(names)}
    return pl.col(column).replace_strict(ranks, default=len(names))


def _summed_up(part: pl.DataFrame, options: Mapping[str, Any]) -> dict[str, Any]:
    never = part["kind"][0] == "baseline"
    found: dict[str, Any] = {}
    for name in (*SHARES, *MEANS):
        known = part.filter(pl.col(name).is_not_null())
        if known.is_empty() or (never and name.endswith("_lost")):
            continue
        values = known[name].cast(pl.Float64).to_numpy()
        clusters = known["dialogue"].to_numpy().astype(str)
        estimate: Callable[..., Estimate] = clustered_mean
        if name in SHARES or name == "recall_lost":
            estimate = partial(clustered_share, paired=name == "recall_lost")
        found |= _named(name, estimate(values, np.ones(values.size), clusters, **options))
    budgets = part["target_tokens"].unique().to_list()
    return found | {
        "recalled_full": (part["recalled"] + part["recall_lost"]).mean(),
        "chance": part["chance"].mean(),
        "told_cached_share": part["told_cached_share"].mean(),
        "changed": (part["recall_lost"] != 0).sum() if not never else None,
        "n_questions": part.height,
        "n_dialogues": part["dialogue"].n_unique(),
        "budget_tokens": budgets[0] if len(budgets) == 1 else None,
    }


def _named(name: str, found: Estimate) -> dict[str, Any]:
    row: dict[str, Any] = {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return row | ({"p": found.p, "effect": found.effect} if name == "margin_lost" else {})


def told(table: pl.DataFrame) -> list[dict[str, Any]]:
    """What the page says in words: one entry per policy, threshold and origin, position modes that
    come out alike together.

    Each entry has `modes`, `every_mode` (no other mode came out otherwise) and, by what is said of
    it (see `state`), its depths: name, `recalled` (of each mode), `full` and `n` questions.
    """
    keys = ["model", "dataset", "origin", "threshold", "policy"]
    never = table.filter(pl.col("kind") == "baseline").to_dicts()
    full = {tuple(row[name] for name in (*keys[:3], "depth")): row for row in never}
    entries = []
    managed = table.filter(pl.col("kind") != "baseline")
    for key, part in managed.group_by(keys, maintain_order=True):
        alike: dict[tuple[Any, ...], list[list[dict[str, Any]]]] = {}
        for mode in POSITIONS:
            rows = part.filter(pl.col("positions") == mode).to_dicts()
            states = tuple(
                (row["depth"], state(row, full.get((*key[:3], row["depth"])))) for row in rows
            )
            if rows:
                alike.setdefault(states, []).append(rows)
        for states, modes in alike.items():
            said: dict[str, list[dict[str, Any]]] = {name: [] for name in STATES}
            for place, (depth, how) in enumerate(states):
                one = modes[0][place]
                shares = [rows[place]["recalled"] for rows in modes]
                said[how].append(
                    {"depth": depth, "recalled": shares, "full": one["recalled_full"]}
                    | {"n": one["n_questions"]}
                )
            about: dict[str, Any] = dict(zip(keys, key, strict=True))
            about["modes"] = [rows[0]["positions"] for rows in modes]
            entries.append(about | {"every_mode": len(alike) == 1, "said": said})
    return entries


def state(row: Mapping[str, Any], full: Mapping[str, Any] | None) -> str:
    """What one row of `by_depth` says of its depth; `full` is the never evicted run's row.

    "forgotten": the loss's interval is above 0. "untested": with nothing evicted the model itself
    is not above chance, so that there is little to forget. "kept": the interval is below MARGIN.
    "unchanged": no answer changed, but there are too few to rule a loss out. Else "undecided".
    """
    low, high = row["recall_lost_low"], row["recall_lost_high"]
    if low is not None and low > 0:
        return "forgotten"
    if full is None or full["recalled_low"] is None or full["recalled_low"] <= full["chance"]:
        return "untested"
    if high is not None and high < MARGIN:
        return "kept"
    return "unchanged" if row["changed"] == 0 else "undecided"
