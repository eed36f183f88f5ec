"""Figures that set two things against each other: cells, quality and bytes, measure and loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvfidelity.analysis.predictors import counted_turns
from kvfidelity.analysis.within_turns import fisher_by_dialogue, with_groups
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS
from kvfidelity.report.dots import ONE, dots, of_means, with_dots, with_interval
from kvfidelity.report.figures import (
    NO_LOSS,
    WIDTH,
    count_label,
    dialogue_losses,
    distinct_label,
    mode_colour,
    mode_shape,
    nothing,
)
from kvfidelity.report.formatting import interval, signed

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
        color=mode_colour(policies),
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
    coloured = base.encode(color=mode_colour(policies))
    each = dots(coloured, alt.Y(f"{ONE}:Q", scale=scale, title=""))
    bars = with_interval(base).mark_rule()
    bars = bars.encode(
        y=alt.Y("low:Q", scale=scale, title=""),
        y2="high:Q",
        color=mode_colour(policies),
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


def predictor_ranking(predictors: pl.DataFrame, turns: pl.DataFrame) -> alt.TopLevelMixin:
    """Rank correlation of each integrity metric with excess NLL within turns, with intervals; a dot
    per dialogue if they are few."""
    if predictors.is_empty():
        return nothing(NO_ORDER)
    keys = ("model", "dataset", "metric")
    ranked = predictors.rename({"correlation": "mean"}).with_columns(
        measure=pl.col("metric").str.replace_all("_", " "),
        setting=pl.concat_str("model", "dataset", separator=", "),
        n=pl.format("dialogues: {}, turns: {}", "n_dialogues", "n_turns"),
        size=pl.col("mean").abs(),
    )
    data = with_dots(ranked, correlation_by_dialogue(predictors, turns), keys)
    scale = alt.Scale(domain=[-1, 1])
    title = "rank correlation with excess NLL within turns"
    order = alt.EncodingSortField("size", op="max", order="descending")
    base = alt.Chart(data).encode(y=alt.Y("measure:N", title=None, sort=order))
    bars = with_interval(base).mark_rule(strokeWidth=2, color="#0072B2")
    bars = bars.encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    points = of_means(base).mark_point(filled=True, size=70, color="#0072B2")
    points = points.encode(
        x=alt.X("mean:Q", scale=scale, title=[title, count_label(data)]),
        tooltip=["metric", "model", "mean", "low", "high", "n"],
    )
    each = dots(base, alt.X(f"{ONE}:Q", scale=scale, title=""))
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    layers = alt.layer(zero, bars, each, points, data=data)
    height = 24 * max(1, data["measure"].n_unique())
    layers = layers.properties(width=WIDTH * 0.75, height=height)
    if data["setting"].n_unique() < 2:
        return layers
    return layers.facet(row=alt.Row("setting:N", title=None))


def correlation_by_dialogue(predictors: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """Each dialogue's rank correlation within its turns: model, dataset, metric, ONE."""
    metrics = tuple(predictors["metric"].unique(maintain_order=True))
    counted = dict(counted_turns(turns, metrics).group_by("model", "dataset", maintain_order=True))
    grouped = {setting: with_groups(part) for setting, part in counted.items()}
    parts = [
        fisher_by_dialogue(grouped[model, dataset], metric, "excess_nll").select(
            model=pl.lit(model),
            dataset=pl.lit(dataset),
            metric=pl.lit(metric),
            **{ONE: pl.col("z").tanh()},
        )
        for model, dataset, metric in predictors.select("model", "dataset", "metric").rows()
    ]
    return pl.concat(parts)


def best_predictor(turns: pl.DataFrame, predictors: pl.DataFrame) -> alt.TopLevelMixin:
    """Excess NLL of every turn against the measure that orders the cells of a turn best, one panel
    per model and data set with its correlation; of each at most MAX_POINTS turns are drawn, evenly
    spread."""
    shown = ["policy", "positions", "turn", "dialogue", "excess_nll"]
    evicted = turns.filter("after_eviction", "inside_window", pl.col("excess_nll").is_not_null())
    several = evicted.select(pl.struct("model", "dataset").n_unique()).item() > 1
    empty = pl.DataFrame(schema={name: turns.schema[name] for name in shown})
    parts = [empty.with_columns(value=pl.lit(0.0), panel=pl.lit(""))]
    for (model, dataset), part in evicted.group_by("model", "dataset", maintain_order=True):
        ranked = predictors.filter(model=model, dataset=dataset).head(1).to_dicts()
        sampled = part.gather_every(max(1, math.ceil(part.height / MAX_POINTS)))
        setting = f"{model}, {dataset}: " if several else ""
        parts += [
            sampled.select(
                *shown,
                value=pl.col(row["metric"]).cast(pl.Float64),
                panel=pl.lit(setting + _panel_title(row)),
            )
            for row in ranked
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
            color=mode_colour(data),
            shape=mode_shape(data),
            tooltip=["policy", "positions", "dialogue", "turn", "value", "excess_nll"],
        )
        .properties(width=240, height=200)
        .facet(facet=alt.Facet("panel:N", title=None), columns=2)
        .resolve_scale(x="independent")
    )


def _panel_title(row: Mapping[str, Any]) -> str:
    """ "future share", and on a line of its own "ρ = +0.75 [+0.70, +0.91], n = 12" dialogues."""
    value = f"ρ = {signed(row['correlation'], 2)} {interval(row, 2)}"
    return f"{row['metric'].replace('_', ' ')}\n{value}, n = {row['n_dialogues']}"
