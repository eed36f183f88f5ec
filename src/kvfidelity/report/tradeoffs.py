"""Figures that set two things against each other: cells, quality and bytes, measure and loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS
from kvfidelity.report.dots import ONE, dots, of_means, with_dots, with_interval
from kvfidelity.report.figures import (
    MODE_COLOURS,
    MODE_SHAPES,
    NO_LOSS,
    WIDTH,
    count_label,
    dialogue_losses,
    distinct_label,
    nothing,
)
from kvfidelity.report.formatting import interval, signed

#: The measure that this project proposes.
PROPOSED_METRIC = "phase_distortion"
NO_ORDER = "no measure of positions varies over the turns that were scored"
#: Marks of one figure at most.
MAX_POINTS = 1500
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]


def heat_map(policies: pl.DataFrame) -> alt.TopLevelMixin:
    """Excess NLL of every policy under every position mode, with n in each cell."""
    if policies.is_empty():
        return nothing(NO_LOSS)
    data = policies.with_columns(
        shown=pl.col("mean").map_elements(lambda mean: f"{mean:+.2f}", pl.String),
        n=pl.format("n = {}", "n_dialogues"),
        setting=distinct_label(policies),
    )
    scale = alt.Scale(type="symlog", constant=0.05, scheme="blues")
    base = alt.Chart(data).encode(
        x=alt.X("positions:N", sort=list(POSITIONS), title=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("setting:N", title=None, axis=alt.Axis(labelLimit=320)),
    )
    text_colour = alt.condition("datum.mean > 0.9", alt.value("white"), alt.value("#1c1e21"))
    cells = base.mark_rect().encode(
        color=alt.Color("mean:Q", scale=scale, legend=None),
        tooltip=["policy", "positions", "threshold", "mean", "low", "high", "n_dialogues"],
    )
    values = base.mark_text(fontSize=14, dy=-6, aria=False).encode(
        text="shown:N", color=text_colour
    )
    counts = base.mark_text(fontSize=10, dy=10, aria=False).encode(text="n:N", color=text_colour)
    return alt.layer(cells, values, counts).properties(
        width=WIDTH * 0.75, height=46 * max(1, data["setting"].n_unique())
    )


def pareto(policies: pl.DataFrame, dialogues: pl.DataFrame) -> alt.TopLevelMixin:
    """Excess NLL against the bytes that the cache takes, and which cells nothing else beats; a dot
    per dialogue if they are few.

    Cells of all budgets stand together: position on the byte axis is their budget.
    """
    data = pareto_front(policies).with_columns(megabytes=pl.col("cache_bytes") / 1e6)
    if data.is_empty():
        return nothing(NO_LOSS)
    data = with_dots(data, dialogue_losses(dialogues), CELL_COLUMNS)
    scale = alt.Scale(type="symlog", constant=0.05)
    axis = alt.Axis(values=[-0.1, 0, 0.1, 1, 10], format="~g")
    size = alt.X("megabytes:Q", title="cache after prefill (MB, mean)", scale=alt.Scale(zero=False))
    loss = alt.Y("mean:Q", title=["excess NLL (nats)", count_label(data)], scale=scale, axis=axis)
    base = alt.Chart(data).encode(x=size)
    points = of_means(base).mark_point(filled=True, size=80)
    points = points.encode(
        y=loss,
        color=alt.Color("positions:N", scale=MODE_COLOURS, title="positions"),
        shape=alt.Shape("policy:N", title="policy", scale=alt.Scale(range=SHAPES)),
        tooltip=[
            "policy",
            "positions",
            "threshold",
            "megabytes",
            "mean",
            "low",
            "high",
            "n_dialogues",
        ],
    )
    coloured = base.encode(color=alt.Color("positions:N", scale=MODE_COLOURS))
    each = dots(coloured, alt.Y(f"{ONE}:Q", scale=scale, title=""))
    bars = with_interval(base).mark_rule()
    bars = bars.encode(
        y=alt.Y("low:Q", scale=scale, title=""),
        y2="high:Q",
        color=alt.Color("positions:N", scale=MODE_COLOURS),
    )
    edge = (
        of_means(base)
        .transform_filter("datum.on_front")
        .mark_line(interpolate="step-after", strokeDash=[4, 3], color="currentColor", aria=False)
        .encode(y=loss)
    )
    return alt.layer(edge, bars, each, points).properties(width=WIDTH * 0.8, height=260)


def pareto_front(policies: pl.DataFrame) -> pl.DataFrame:
    """Add `on_front`: no other cell of the model and dataset has less loss in as few bytes."""
    rows = policies.filter(pl.col("cache_bytes").is_not_null())
    ordered = rows.sort("cache_bytes", "mean")
    least = pl.col("mean").cum_min().over("model", "dataset")
    before = least.shift(1).over("model", "dataset")
    return ordered.with_columns(on_front=(pl.col("mean") < before).fill_null(True))


def predictor_ranking(predictors: pl.DataFrame) -> alt.TopLevelMixin:
    """Rank correlation of each integrity metric with excess NLL, with intervals."""
    if predictors.is_empty():
        return nothing(NO_ORDER)
    data = predictors.with_columns(
        measure=pl.col("metric").str.replace_all("_", " "),
        setting=pl.concat_str("model", "dataset", separator=", "),
        n=pl.format("dialogues: {}, turns: {}", "n_dialogues", "n_turns"),
        size=pl.col("correlation").abs(),
    )
    scale = alt.Scale(domain=[-1, 1])
    title = "rank correlation with excess NLL"
    base = alt.Chart(data).encode(
        y=alt.Y("measure:N", title=None, sort=alt.SortField("size", order="descending"))
    )
    bars = base.mark_rule(strokeWidth=2, color="#0072B2").encode(
        x=alt.X("low:Q", scale=scale), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=70, color="#0072B2").encode(
        x=alt.X("correlation:Q", scale=scale, title=[title, count_label(data)]),
        tooltip=["metric", "model", "correlation", "low", "high", "n"],
    )
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    layers = alt.layer(zero, bars, points, data=data)
    height = 24 * max(1, data["measure"].n_unique())
    layers = layers.properties(width=WIDTH * 0.75, height=height)
    if data["setting"].n_unique() < 2:
        return layers
    return layers.facet(row=alt.Row("setting:N", title=None))


def distortion(turns: pl.DataFrame, predictors: pl.DataFrame) -> alt.TopLevelMixin:
    """Excess NLL of every turn against phase distortion and against the measure that orders turns
    best, with their rank correlations; of each model and data set at most POINTS turns are drawn,
    evenly spread."""
    shown = ["policy", "positions", "turn", "dialogue", "excess_nll"]
    evicted = turns.filter("after_eviction", "inside_window", pl.col("excess_nll").is_not_null())
    several = evicted.select(pl.struct("model", "dataset").n_unique()).item() > 1
    empty = pl.DataFrame(schema={name: turns.schema[name] for name in shown})
    parts = [empty.with_columns(value=pl.lit(0.0), panel=pl.lit(""))]
    for (model, dataset), part in evicted.group_by("model", "dataset", maintain_order=True):
        ranked = predictors.filter(model=model, dataset=dataset).to_dicts()
        best = [row for row in ranked if row["metric"] != PROPOSED_METRIC][:1]
        sampled = part.gather_every(max(1, math.ceil(part.height / MAX_POINTS)))
        setting = f"{model}, {dataset}: " if several else ""
        parts += [
            sampled.select(
                *shown,
                value=pl.col(row["metric"]).cast(pl.Float64),
                panel=pl.lit(setting + _panel_title(row)),
            )
            for row in [*(row for row in ranked if row["metric"] == PROPOSED_METRIC), *best]
        ]
    data = pl.concat(parts).drop_nulls("value")
    if data.is_empty():
        return nothing(NO_ORDER)
    axis = alt.Axis(values=[-0.1, 0, 0.1, 1, 10], format="~g")
    return (
        alt.Chart(data)
        .mark_point(filled=True, size=26, opacity=0.6)
        .encode(
            x=alt.X("value:Q", title=None, axis=alt.Axis(tickCount=5)),
            y=alt.Y(
                "excess_nll:Q",
                title="excess NLL (nats)",
                scale=alt.Scale(type="symlog", constant=0.05),
                axis=axis,
            ),
            color=alt.Color("positions:N", scale=MODE_COLOURS, title="positions"),
            shape=alt.Shape("positions:N", scale=MODE_SHAPES, title="positions"),
            tooltip=["policy", "positions", "dialogue", "turn", "value", "excess_nll"],
        )
        .properties(width=240, height=200)
        .facet(facet=alt.Facet("panel:N", title=None), columns=2)
        .resolve_scale(x="independent")
    )


def _panel_title(row: Mapping[str, Any]) -> str:
    """ "future share", and on a line of its own "ρ = +0.75 [+0.70, +0.91], n = 72" turns."""
    value = f"ρ = {signed(row['correlation'], 2)} {interval(row, 2)}"
    return f"{row['metric'].replace('_', ' ')}\n{value}, n = {row['n_turns']}"
