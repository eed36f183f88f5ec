"""What claims are about: the quantities of all runs, one row per turn, with each run's setting."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.own_replies import came_to_an_end
from kvfidelity.analysis.window import change_at_edge
from kvfidelity.records.grid import BASELINE, CELL_COLUMNS

#: What says which turn of which run a row is, and how much it weighs.
IDENTITY = (
    *("run", *CELL_COLUMNS, "kind", "trigger", "dialogue", "seed", "turn", "target_tokens"),
    *("reference_tokens", "after_eviction", "inside_window"),
)
#: Which training a run's model has had; only some tables say it.
ARMS = ("base_model", "arm")
#: Which stretch of the conversation a turn is, for changes at the trained window.
PLACE = ("tokens_seen_start", "tokens_seen_end", "trained_window")
#: Quantities of recall questions; `depth` and `origin` choose among them.
RECALL_QUANTITIES = (
    "recalled",
    "recall_lost",
    "margin",
    "margin_lost",
    "answered",
    "evidence_retained_share",
    "confidence",
    "overconfidence",
)
#: What else a run's setting and its quantities are found by.
OF_SETTING = (
    *("parameters", "replies", "threshold_tokens", "prompt_tokens", "baseline_nll"),
    *("finish_reason", "reply_token_count", *ARMS),
)
NO_PROBE = pl.lit(-1, pl.Int32)
WINDOW_CHANGES = ("nll_change_at_window", "nll_change_beyond_window", "nll_drift_inside")
#: Kinds whose scores count the latest queries unless the configuration says otherwise.
LATEST_BY_DEFAULT = ("attention_top", "attention_bottom")
DEFAULT_KEEP_RATIO = 0.99
#: `turns` of a claim in words.
WHICH_TURNS = {
    "after_eviction": " on turns after an eviction",
    "inside_window": " on turns after an eviction, inside the trained window",
    "past_window": " on turns after an eviction, past the trained window",
    "change_at_window": " on turns on both sides of the trained window's edge",
}
#: How near a cell's retention must be to a claim's.
RETENTION_TOLERANCE = 0.005


def observations(tables: Mapping[str, pl.DataFrame], quantities: Collection[str]) -> pl.DataFrame:
    """The quantities of claims, as far as the data have them, one row per turn of every run.

    Changes at the window stand at turn -1, those beyond it at -2, with weights of their own.
    Recall questions have their own rows, numbered by `probe`; `probe` is -1 elsewhere. Each row
    says its run's setting, see `run_settings`, and a turn its prompt per threshold as
    `prompt_share`.
    """
    known = tables["turns"]
    if "finish_reason" in known.columns:
        known = known.with_columns(complete=came_to_an_end().cast(pl.Float64))
    names = {*quantities, "baseline_nll", "prompt_tokens", *PLACE, *ARMS} & set(known.columns)
    prompt_share = pl.lit(None, pl.Float64)
    if {"prompt_tokens", "threshold_tokens"} <= set(known.columns):
        prompt_share = pl.col("prompt_tokens") / pl.col("threshold_tokens")
    turns = known.select(*IDENTITY, *sorted(names - set(IDENTITY)), prompt_share=prompt_share)
    verdicts = tables["verdicts"]
    if verdicts.height and any(name.startswith("score.") for name in quantities):
        scores = verdicts.filter(pl.col("status") == "ok").with_columns(
            judge=pl.lit("score.") + pl.col("judge"), score=pl.col("score").cast(pl.Float64)
        )
        if scores.height:
            turns = turns.join(
                scores.pivot("judge", index=["run", "turn"], values="score"),
                on=["run", "turn"],
                how="left",
            )
    change = change_at_edge(tables["window"])
    runs = turns.unique("run").select(
        "run", *CELL_COLUMNS, "kind", "trigger", "dialogue", "seed", "target_tokens"
    )
    at_edge = change.select("run", "nll_change_at_window", "nll_drift_inside", "reference_tokens")
    beyond = change.select("run", "nll_change_beyond_window", reference_tokens="tokens_beyond")
    changes = [
        runs.join(part, on="run").with_columns(turn=pl.lit(turn, pl.Int32), probe=NO_PROBE)
        for turn, part in ((-1, at_edge), (-2, beyond))
    ]
    questions = tables["recall"].select(
        *[name for name in IDENTITY if name in tables["recall"].columns],
        *("probe", "origin", "depth", "chance"),
        *[name for name in ("evicted",) if name in tables["recall"].columns],
        *[
            pl.col(name).cast(pl.Float64)
            for name in RECALL_QUANTITIES
            if name in tables["recall"].columns
        ],
    )
    rows = pl.concat(
        [turns.with_columns(probe=NO_PROBE), *changes, questions],
        how="diagonal_relaxed",
    )
    settings = run_settings(tables["turns"], tables.get("dialogues"))
    rows = rows.drop("trigger").join(settings, on="run", how="left")
    if not set(ARMS) <= set(known.columns):
        return rows
    arms = known.unique("run").select("run", *ARMS)
    return rows.drop(ARMS).join(arms, on="run", how="left", maintain_order="left")


def columns_of_turns(quantities: Collection[str]) -> list[str]:
    """The columns of `turns` that `observations` uses, and some that other tables may have."""
    return sorted({*IDENTITY, *PLACE, *OF_SETTING, *quantities})


def run_settings(turns: pl.DataFrame, dialogues: pl.DataFrame | None = None) -> pl.DataFrame:
    """One row per run: what a claim may state about its setting.

    trigger, replies. history: which queries the scores of an attention policy count. protected:
    whether it always keeps sinks or recent slots. retention: share of the cache that an eviction
    keeps; missing where the policy keeps a number of tokens of its own. healing: what it does about
    the gap, none for nothing. keep_sets: a digest of
    which tokens its evictions kept.
    """
    parameter = pl.col("parameters").str.json_path_match
    kind = pl.col("kind")
    latest = pl.when(kind.is_in(LATEST_BY_DEFAULT)).then(pl.lit("latest"))
    ratio = pl.coalesce(
        parameter("$.keep_ratio").cast(pl.Float64),
        pl.when(kind.is_in(LATEST_BY_DEFAULT)).then(DEFAULT_KEEP_RATIO),
    )
    pinned = [parameter(f"$.{name}").cast(pl.Float64).fill_null(0) for name in ("sinks", "recent")]
    needed = ("parameters", "replies", "threshold_tokens")
    turns = turns.with_columns(
        pl.lit(None, pl.Float64 if name.endswith("tokens") else pl.String).alias(name)
        for name in needed
        if name not in turns.columns
    )
    found = (
        turns.group_by("run", maintain_order=True)
        .agg(
            *[
                pl.col(name).first()
                for name in ("kind", "parameters", "trigger", "replies", "target_tokens")
            ],
            pl.col("threshold_tokens").first(),
        )
        .select(
            *("run", "trigger", "replies"),
            history=pl.coalesce(parameter("$.history"), latest),
            healing=pl.coalesce(parameter("$.healing"), pl.lit("none")),
            protected=pl.when(kind.is_in(LATEST_BY_DEFAULT)).then(pinned[0] + pinned[1] > 0),
            retention=pl.when(pl.col("target_tokens").is_not_null())
            .then(pl.col("target_tokens") / pl.col("threshold_tokens"))
            .otherwise(ratio),
        )
    )
    if dialogues is None or "keep_sets" not in dialogues.columns:
        return found.with_columns(keep_sets=pl.lit(None, pl.String))
    return found.join(dialogues.select("run", "keep_sets"), on="run", how="left")


def conditions(values: Mapping[str, Any]) -> list[pl.Expr]:
    """What chooses the rows with these values; a number is a retention, or the least share of a
    prompt."""
    return [
        (pl.col(name) - value).abs() <= RETENTION_TOLERANCE
        if name == "retention"
        else pl.col(name) >= value
        if name == "prompt_share"
        else pl.col(name) == value
        for name, value in values.items()
    ]


def why_not_tested(
    rows: pl.DataFrame,
    asked: Sequence[Mapping[str, Any]],
    quantity: str,
    turns: str,
    tested_in: str | None,
) -> str:
    """Why a claim has nothing to be decided from.

    Args:
        rows: of all runs.
        asked: what the claim asks of its rows, and of those that it subtracts.
        turns: which turns it is over.
        tested_in: the configuration that tests it.
    """
    where = f"; {tested_in} tests it" if tested_in else ""
    there = [pl.all_horizontal(pl.lit(True), *conditions(values)).any() for values in asked]
    # Only counted: a copy of all rows for each claim would take most of the time.
    if not all(rows.select(one).item() for one in there):
        return f"no run of this grid is at the claim's setting{where}"
    if quantity in WINDOW_CHANGES:
        return f"no run of this grid is long enough past the trained window{where}"
    if quantity.startswith("score."):
        judge = quantity.removeprefix("score.")
        return f"runs are at the claim's setting, but judge {judge} gave no score on its turns"
    over = WHICH_TURNS.get(turns, "")
    return f"runs are at the claim's setting, but none has {quantity}{over}{where}"


def turns_of(turns: str, quantity: str, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that a claim's `turns` chooses.

    The baseline has no turn after an eviction: all of its turns inside or past the window are there
    to be compared with.
    """
    if quantity in WINDOW_CHANGES:
        return rows
    comparable = pl.col("after_eviction") | (pl.col("kind") == BASELINE)
    match turns:
        case "after_eviction":
            return rows.filter(comparable)
        case "inside_window":
            return rows.filter(comparable, "inside_window")
        case "past_window":
            return rows.filter(comparable, ~pl.col("inside_window"))
        case "peak":
            top = rows.sort(quantity, descending=True).unique("run", keep="first")
            return top.with_columns(turn=pl.lit(-1, pl.Int32))
        case "change_at_window":
            return _change_at_window(quantity, rows)
        case _:
            return rows


def _change_at_window(quantity: str, rows: pl.DataFrame) -> pl.DataFrame:
    """One row per run: the mean of turns past the trained window minus that of the turns in its
    second half. The first half is left out: there a conversation has hardly started."""
    window, start = pl.col("trained_window"), pl.col("tokens_seen_start")
    past = start >= window
    before = (start >= window / 2) & (pl.col("tokens_seen_end") <= window)
    value = pl.col(quantity).cast(pl.Float64)
    change = value.filter(past).mean() - value.filter(before).mean()
    changes = rows.group_by("run", maintain_order=True).agg(change.alias(quantity))
    runs = rows.unique("run", keep="first", maintain_order=True).drop(quantity)
    return (
        runs.join(changes, on="run")
        .filter(pl.col(quantity).is_not_null())
        .with_columns(turn=pl.lit(-1, pl.Int32))
    )
