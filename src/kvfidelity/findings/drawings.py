"""The figures of the page, drawn from published tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import altair as alt
import polars as pl

from kvfidelity.atomic_files import write_text
from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.sources import MODES, kept_tokens, main_first
from kvfidelity.records.arms import NO_ARM
from kvfidelity.records.grid import BASELINE, POSITIONS
from kvfidelity.report.figures import (
    WIDTH,
    count_label,
    excess,
    mode_colour,
    mode_shape,
    nothing,
)
from kvfidelity.report.theme import svg, with_theme
from kvfidelity.report.timeline import through_window
from kvfidelity.report.tradeoffs import pareto_front

NOT_MEASURED = "this run has no such rows"


def loss(run: PublishedRun) -> alt.TopLevelMixin:
    """Excess NLL by policy and position mode."""
    return excess(run.tables["policies"], run.tables["dialogues"])


def three_modes(run: PublishedRun) -> alt.TopLevelMixin:
    """The same of one budget in the three modes, policies with a penalty left out."""
    chosen = (
        (pl.col("threshold") == MODES[run.finding.name][0])
        & pl.col("positions").is_in(list(POSITIONS))
        & ~pl.col("policy").str.starts_with("penalty")
    )
    return excess(*(run.tables[name].filter(chosen) for name in ("policies", "dialogues")))


def front(run: PublishedRun) -> alt.TopLevelMixin:
    """Excess NLL by policy and size of the cache, at corrected positions.

    Filled marks are on the front: no other policy loses less in as few bytes. A row per policy, for
    with equal budgets all policies have the same few sizes, and would hide each other.
    """
    rows = pareto_front(run.tables["policies"].filter(positions="rerotated"))
    rows = rows.filter(pl.col("budget_tokens").is_not_null())
    if rows.is_empty():
        return nothing(NOT_MEASURED)
    megabytes = (pl.col("cache_bytes") / 1e6).median().over("budget_tokens").round().cast(pl.Int64)
    kept = pl.col("budget_tokens").map_elements(lambda tokens: f"{tokens:,}", pl.String)
    data = rows.with_columns(cache=pl.format("{} tokens, {} MB", kept, megabytes))
    sizes = data.sort("budget_tokens")["cache"].unique(maintain_order=True).to_list()
    order = data.sort("budget_tokens", "mean")["policy"].unique(maintain_order=True).to_list()
    scale = alt.Scale(type="symlog", constant=0.05)
    ticks = alt.Axis(values=[-0.1, 0, 0.1, 1], format="~g", grid=True)
    base = alt.Chart(data).encode(
        y=alt.Y("policy:N", title=None, sort=order, axis=alt.Axis(labelLimit=280)),
        yOffset=alt.YOffset("cache:N", sort=sizes),
        color=alt.Color("cache:N", title="kept", sort=sizes),
    )
    title = "excess NLL (nats per token, symmetric log); filled: on the front"
    points = base.mark_point(size=60, strokeWidth=2).encode(
        x=alt.X("mean:Q", title=[title, count_label(data)], scale=scale, axis=ticks),
        shape=alt.Shape("cache:N", legend=None, sort=sizes),
        fillOpacity=alt.condition("datum.on_front", alt.value(1), alt.value(0)),
        fill=alt.Color("cache:N", legend=None, sort=sizes),
        tooltip=["policy", "cache", "mean", "low", "high", "n_dialogues"],
    )
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5)
    bars = bars.encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    chart = alt.layer(zero, bars, points, data=data)
    return chart.properties(width=0.7 * WIDTH, height=14 * len(sizes) * len(order))


def own_replies(run: PublishedRun) -> alt.TopLevelMixin:
    """How much less likely own replies are than the baseline's."""
    ends = {"lost": "mean", "lost_low": "low", "lost_high": "high"}
    rows = run.tables["own_replies"].drop("mean", "low", "high").rename(ends)
    rows = rows.sort("threshold", "policy", "positions")
    return intervals(rows, "NLL lost of own replies (nats per token)")


def window(run: PublishedRun) -> alt.TopLevelMixin:
    """NLL by token index, with nothing evicted."""
    return through_window(run.tables["window"])


def balance(run: PublishedRun) -> alt.TopLevelMixin:
    """What of the middle is forgotten, by policy and budget, at corrected positions."""
    rows = run.tables["balance"].filter(positions="rerotated").sort(-pl.col("budget_tokens"))
    rows = rows.with_columns(threshold=pl.format("{} kept", "budget_tokens"))
    shown = rows.rename({"middle_lost": "mean", "middle_low": "low", "middle_high": "high"})
    return intervals(shown, "the middle's margin lost (nats)")


def healings(run: PublishedRun) -> alt.TopLevelMixin:
    """What each healing changes of the loss right after an eviction."""
    rows = main_first(run.tables["healings"]).rename({"difference": "mean"})
    names = {key: f"{size} kept" for key, size in kept_tokens(run).items()}
    rows = rows.with_columns(pl.col("threshold").replace(names))
    return intervals(rows, "change of the first 32 tokens' excess NLL (nats per token)")


def arms(run: PublishedRun) -> alt.TopLevelMixin:
    """What each arm's training changes of the loss in its cell, and with nothing evicted."""
    cell = pl.format("{}, {}", "policy", "threshold")
    where = pl.when(pl.col("policy") == BASELINE).then(pl.lit("nothing evicted")).otherwise(cell)
    rows = run.tables["finetuning"].filter(
        pl.col("positions") == pl.col("against_positions"),
        measure="reference_nll",
        against=NO_ARM,
    )
    rows = rows.sort("policy", "threshold", "arm", "positions")
    shown = rows.with_columns(policy=pl.format("{}: {}", where, "arm"), threshold=pl.lit(""))
    title = "NLL against the base model in the same cell (nats per token)"
    return intervals(shown.rename({"difference": "mean"}), title)


def first_token(run: PublishedRun) -> alt.TopLevelMixin:
    """Time to first token and per further token by policy."""
    rows = run.tables["timing"]
    names = {"ttft_s": "time to first token (ms)", "tpot_s": "per further token (ms)"}
    panels = []
    for name, title in names.items():
        data = rows.select("policy", "n_dialogues", ms=1000 * pl.col(name)).drop_nulls("ms")
        chart = alt.Chart(data).mark_bar(height=12, color="#0072B2")
        panels.append(
            chart.encode(
                x=alt.X("ms:Q", title=[title, count_label(data)]),
                y=alt.Y("policy:N", title=None, axis=alt.Axis(labelLimit=200)),
                tooltip=["policy", "ms", "n_dialogues"],
            ).properties(width=WIDTH * 0.35, height=22 * max(1, data["policy"].n_unique()))
        )
    return alt.hconcat(*panels)


def intervals(rows: pl.DataFrame, title: str) -> alt.TopLevelMixin:
    """A row per policy (and threshold, if there are several): means with intervals, by mode.

    Args:
        rows: `policy`, `positions`, `threshold`, `mean`, `low`, `high`, `n_dialogues`.
    """
    data = rows.filter(pl.col("mean").is_not_null())
    if data.is_empty():
        return nothing(NOT_MEASURED)
    several = data["threshold"].n_unique() > 1
    label = pl.format("{}, {}", "policy", "threshold") if several else pl.col("policy")
    data = data.with_columns(row=label)
    titles = [f"{title}, symmetric log", count_label(data)]
    order = data["row"].unique(maintain_order=True).to_list()
    scale = alt.Scale(type="symlog", constant=0.05)
    ticks = alt.Axis(
        values=[-10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10], format="~g", grid=True
    )
    base = alt.Chart(data).encode(
        y=alt.Y("row:N", title=None, sort=order, axis=alt.Axis(labelLimit=280)),
        yOffset=alt.YOffset("positions:N"),
        color=mode_colour(data),
    )
    points = base.mark_point(filled=True, size=60).encode(
        x=alt.X("mean:Q", title=titles, scale=scale, axis=ticks),
        shape=mode_shape(data),
        tooltip=["row", "positions", "mean", "low", "high", "n_dialogues"],
    )
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    bars = bars.encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    height = 26 * len(order)
    return alt.layer(zero, bars, points, data=data).properties(width=0.7 * WIDTH, height=height)


#: Of both findings with trained models.
TRAININGS = (("arms", arms, "finetuning", "what each training changes of the NLL"),)
#: The figures of a finding: name, what draws it, the table that it needs, and what it shows.
DRAWN: dict[str, tuple[tuple[str, Callable[[PublishedRun], alt.TopLevelMixin], str, str], ...]] = {
    "paper_reference": (
        ("loss", loss, "policies", "excess NLL by policy, threshold and position mode"),
    ),
    "paper_own": (
        ("own", own_replies, "own_replies", "NLL lost of own replies, against the baseline's"),
    ),
    "equal_budgets": (
        ("modes", three_modes, "policies", "excess NLL, 2,000 of 5,600 tokens kept"),
        ("front", front, "policies", "excess NLL by policy and size of the cache, corrected"),
    ),
    "through_window": (("window", window, "window", "NLL by token index, nothing evicted"),),
    "through_window_joined": (("window", window, "window", "NLL by token index, nothing evicted"),),
    "next_checks": (("loss", loss, "policies", "excess NLL by aggregation and kept block"),),
    "locomo": (("loss", loss, "policies", "excess NLL on LoCoMo by policy and position mode"),),
    "question1": (("balance", balance, "balance", "what of the middle is forgotten, by policy"),),
    "question2": TRAININGS,
    "question2_replies": TRAININGS,
    "disruption": (
        ("modes", three_modes, "policies", "excess NLL, 2,000 of 5,600 tokens kept"),
        ("loss", loss, "policies", "excess NLL by policy, budget and position mode"),
    ),
    "question4": (("healings", healings, "healings", "what each healing changes of the loss"),),
    "cost": (("time", first_token, "timing", "time to first token and per further token"),),
}


def figures(run: PublishedRun) -> list[tuple[str, str]]:
    """The figures that a run has: file below the page's folder, and what it shows."""
    return [
        (f"findings/{run.finding.name}/{run.model}/{name}.svg", shows)
        for name, _, table, shows in DRAWN.get(run.finding.name, ())
        if run.tables[table].height
    ]


def draw(run: PublishedRun) -> list[Path]:
    """Write the figures of a run into its folder; they are on white, for pages dark and light."""
    files = []
    for name, function, table, _ in DRAWN.get(run.finding.name, ()):
        if run.tables[table].height:
            spec = with_theme(function(run)) | {"background": "white"}
            file = run.folder / f"{name}.svg"
            write_text(file, svg(spec, name))
            files.append(file)
    return files
