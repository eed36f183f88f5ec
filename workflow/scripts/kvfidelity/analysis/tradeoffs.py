"""Figures that set two things against each other: cells, quality and bytes, measure and loss."""

from __future__ import annotations

import altair as alt
import polars as pl

from kvfidelity.analysis.figures import MODES, WIDTH
from kvfidelity.grid import POSITIONS

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]


def heat_map(policies: pl.DataFrame) -> alt.LayerChart:
    """Excess NLL of every policy under every position mode, with n in each cell."""
    data = policies.with_columns(
        shown=pl.col("mean").map_elements(lambda mean: f"{mean:+.2f}", pl.String),
        n=pl.format("n = {}", "n_dialogues"),
        place=_place(policies),
    )
    scale = alt.Scale(type="symlog", constant=0.05, scheme="blues")
    base = alt.Chart(data).encode(
        x=alt.X("positions:N", sort=list(POSITIONS), title=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("place:N", title=None, axis=alt.Axis(labelLimit=320)),
    )
    dark = alt.condition("datum.mean > 0.9", alt.value("white"), alt.value("#1c1e21"))
    cells = base.mark_rect().encode(
        color=alt.Color("mean:Q", scale=scale, legend=None),
        tooltip=["policy", "positions", "threshold", "mean", "low", "high", "n_dialogues"],
    )
    values = base.mark_text(fontSize=14, dy=-6, aria=False).encode(text="shown:N", color=dark)
    counts = base.mark_text(fontSize=10, dy=10, aria=False).encode(text="n:N", color=dark)
    return alt.layer(cells, values, counts).properties(
        width=WIDTH * 0.75, height=46 * max(1, data["place"].n_unique())
    )


def pareto(policies: pl.DataFrame) -> alt.LayerChart:
    """Excess NLL against the bytes that the cache takes, and which cells nothing else beats.

    Cells of all budgets stand together: position on the byte axis is their budget.
    """
    data = front(policies).with_columns(megabytes=pl.col("cache_bytes") / 1e6)
    scale = alt.Scale(type="symlog", constant=0.05)
    axis = alt.Axis(values=[-0.1, 0, 0.1, 1, 10], format="~g")
    size = alt.X("megabytes:Q", title="cache after prefill (MB, mean)", scale=alt.Scale(zero=False))
    loss = alt.Y("mean:Q", title="excess NLL (nats)", scale=scale, axis=axis)
    base = alt.Chart(data).encode(x=size)
    points = base.mark_point(filled=True, size=80).encode(
        y=loss,
        color=alt.Color("positions:N", scale=MODES, title="positions"),
        shape=alt.Shape("policy:N", title="policy", scale=alt.Scale(range=SHAPES)),
        tooltip=["policy", "positions", "threshold", "megabytes", "mean", "low", "high"],
    )
    bars = base.mark_rule().encode(
        y=alt.Y("low:Q", scale=scale, title=""),
        y2="high:Q",
        color=alt.Color("positions:N", scale=MODES),
    )
    edge = (
        base.transform_filter("datum.on_front")
        .mark_line(interpolate="step-after", strokeDash=[4, 3], color="currentColor", aria=False)
        .encode(y=loss)
    )
    return alt.layer(edge, bars, points).properties(width=WIDTH * 0.8, height=260)


def front(policies: pl.DataFrame) -> pl.DataFrame:
    """Add `on_front`: no other cell of the model and dataset has less loss in as few bytes."""
    rows = policies.filter(pl.col("cache_bytes").is_not_null())
    ordered = rows.sort("cache_bytes", "mean")
    least = pl.col("mean").cum_min().over("model", "dataset")
    before = least.shift(1).over("model", "dataset")
    return ordered.with_columns(on_front=(pl.col("mean") < before).fill_null(True))


def foretelling(predictors: pl.DataFrame) -> alt.LayerChart:
    """Rank correlation of each integrity metric with excess NLL, with intervals."""
    data = predictors.with_columns(
        place=pl.col("metric").str.replace_all("_", " "),
        n=pl.format("n = {} dialogues, {} turns", "n_dialogues", "n_turns"),
        size=pl.col("correlation").abs(),
    )
    scale = alt.Scale(domain=[-1, 1])
    base = alt.Chart(data).encode(
        y=alt.Y("place:N", title=None, sort=alt.SortField("size", order="descending"))
    )
    bars = base.mark_rule(strokeWidth=2, color="#0072B2").encode(
        x=alt.X("low:Q", scale=scale), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=70, color="#0072B2").encode(
        x=alt.X("correlation:Q", scale=scale, title="rank correlation with excess NLL"),
        tooltip=["metric", "model", "correlation", "low", "high", "n"],
    )
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    layers = alt.layer(zero, bars, points, data=data)
    height = 24 * max(1, data["place"].n_unique())
    layers = layers.properties(width=WIDTH * 0.75, height=height)
    if data["model"].n_unique() < 2:
        return layers
    return layers.facet(row=alt.Row("model:N", title=None))


def _place(policies: pl.DataFrame) -> pl.Expr:
    """A row's name: the policy, and whatever else differs between cells."""
    parts = [pl.col("policy")]
    varied = ("threshold", "dataset", "model")
    parts += [pl.col(name) for name in varied if policies[name].n_unique() > 1]
    return pl.concat_str(parts, separator=", ")
