"""Figure of recall by the depth of the evidence."""

from __future__ import annotations

import altair as alt
import polars as pl

from kvfidelity.analysis.recall import DEPTHS, rank_in
from kvfidelity.records.grid import BASELINE_POSITIONS, CELL_COLUMNS, POSITIONS
from kvfidelity.report.dots import ONE, of_means, with_dots
from kvfidelity.report.figures import (
    MODE_COLOURS,
    MODE_SHAPES,
    distinct_label,
    look_of,
    nothing,
)
from kvfidelity.report.formatting import DEPTH_NAMES

BASELINE_LABEL = "nothing evicted"
KEYS = (*CELL_COLUMNS, "origin", "depth")


def recall_figure(table: pl.DataFrame, questions: pl.DataFrame) -> alt.TopLevelMixin:
    """Share of questions answered right, one panel per depth, one row per policy; bars are
    intervals, the dashed line is what guessing gives. If dialogues are few, a ring for each share
    that dialogues have is larger the more have it.

    Args:
        table: `recall_by_depth`. questions: the table `recall`.
    """
    if table.is_empty():
        return nothing("this run has no recall questions")
    # The baseline has no threshold to be named by.
    table = with_dots(table, _by_dialogue(questions), KEYS)
    table = table.with_columns(threshold=pl.when(pl.col("kind") != "baseline").then("threshold"))
    data = table.with_columns(
        # The baseline has one mark, in the middle of its row.
        offset=pl.when(pl.col("kind") == "baseline")
        .then(pl.lit(BASELINE_POSITIONS))
        .otherwise("positions"),
        mode=pl.when(pl.col("kind") == "baseline")
        .then(pl.lit(BASELINE_LABEL))
        .otherwise("positions"),
        row=distinct_label(table),
        panel=_panel(table),
        n=pl.format("questions: {}, dialogues: {}", "n_questions", "n_dialogues"),
    )
    panels = data.sort("origin", rank_in("depth", DEPTHS))["panel"].unique(maintain_order=True)
    rows = data["row"].unique(maintain_order=True)
    base = alt.Chart(data).encode(
        y=alt.Y("row:N", title=None, axis=alt.Axis(labelLimit=240), sort=rows.to_list()),
        yOffset=alt.YOffset("offset:N", sort=list(POSITIONS)),
        color=alt.Color(
            "mode:N", scale=_of_modes(MODE_COLOURS, "currentColor", data), title="positions"
        ),
        tooltip=[
            *("policy", "positions", "threshold", "depth", "recalled", "recalled_low"),
            *("recalled_high", "recall_lost", "evidence_retained_share", "n"),
        ],
    )
    scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(values=[0, 0.5, 1], format="~%")
    each = base.transform_filter(f"isValid(datum.{ONE})").transform_aggregate(
        dialogues="count()", groupby=[ONE, "row", "offset", "mode", "panel"]
    )
    rings = each.mark_point(filled=False, opacity=0.5, shape="circle", aria=False).encode(
        x=alt.X(f"{ONE}:Q", scale=scale),
        size=alt.Size("dialogues:Q", legend=None, scale=alt.Scale(range=[12, 120])),
        tooltip=alt.TooltipValue(""),
    )
    points = (
        of_means(base)
        .mark_point(filled=True, size=50)
        .encode(
            x=alt.X("recalled:Q", scale=scale, title="answered right", axis=axis),
            shape=alt.Shape(
                "mode:N", scale=_of_modes(MODE_SHAPES, "diamond", data), title="positions"
            ),
        )
    )
    bars = of_means(base).transform_filter("isValid(datum.recalled_low)")
    bars = bars.mark_rule(strokeWidth=2)
    bars = bars.encode(x=alt.X("recalled_low:Q", scale=scale), x2="recalled_high:Q")
    chance = (
        alt.Chart(data)
        .mark_rule(color="#888", strokeDash=[4, 3], aria=False)
        .encode(x="mean(chance):Q")
    )
    height = 48 * max(1, data["row"].n_unique())
    return (
        alt.layer(chance, bars, rings, points)
        .properties(width=165, height=height)
        .facet(facet=alt.Facet("panel:N", title=None, sort=panels.to_list()), columns=3)
    )


def _of_modes(scale: alt.Scale, baseline: str, rows: pl.DataFrame) -> alt.Scale:
    """The scale of the position modes, and of the baseline, as far as rows have them."""
    modes = rows.filter(pl.col("mode") != BASELINE_LABEL)["mode"]
    shown = look_of(scale, modes)
    if modes.len() < rows.height:
        shown[BASELINE_LABEL] = baseline
    return alt.Scale(domain=list(shown), range=list(shown.values()))


def _by_dialogue(questions: pl.DataFrame) -> pl.DataFrame:
    """Share of right answers of each dialogue, over the questions that `by_depth` is over."""
    counted = questions.filter((pl.col("kind") == "baseline") | pl.col("after_eviction"))
    shares = counted.group_by(*KEYS, "dialogue", maintain_order=True).agg(
        pl.col("recalled").mean().alias(ONE)
    )
    return shares.drop_nulls(ONE).drop("dialogue")


def _panel(table: pl.DataFrame) -> pl.Expr:
    """A panel's name: the depth, the origin if there are several, and how many questions."""
    keys = ["origin", "depth"]
    least, most = (getattr(pl.col("n_questions"), name)().over(keys) for name in ("min", "max"))
    count = (
        pl.when(least == most)
        .then(pl.format("n = {}", most))
        .otherwise(pl.format("n = {} to {}", least, most))
    )
    origin = pl.format("{}, ", "origin") if table["origin"].n_unique() > 1 else pl.lit("")
    depth = pl.col("depth").replace_strict(DEPTH_NAMES, default=pl.col("depth"))
    return pl.format("{}{} ({})", origin, depth, count)
