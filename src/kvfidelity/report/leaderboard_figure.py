"""Figure of what each policy forgets at equal bytes, and of what its evictions cost."""

from __future__ import annotations

import altair as alt
import polars as pl

from kvfidelity.records.grid import POSITIONS
from kvfidelity.report.figures import NO_LOSS, WIDTH, count_label, nothing

#: The mode whose cells are shown where it was run: the loss is then of what was evicted alone.
CORRECTED = "rerotated"
#: A tick's number as it is: formats write 10 as 1e+1.
PLAIN = "'' + datum.value"
BEST, OTHERS = "#0072B2", "#999999"


def leaderboard_figure(table: pl.DataFrame) -> alt.TopLevelMixin:
    """A panel per budget, a row per policy in the order of its rank: what is forgotten, the
    milliseconds of an eviction, and the memory that it takes.

    Args:
        table: the table `leaderboard`.
    """
    ranked = table.filter(pl.col("rank").is_not_null())
    present = [mode for mode in POSITIONS if mode in set(ranked["positions"])]
    if not present:
        return nothing(NO_LOSS)
    mode = CORRECTED if CORRECTED in present else present[0]
    ranked = ranked.filter(pl.col("positions") == mode)
    by_needles = pl.col("ordered_by") == "margin_lost"
    data = ranked.with_columns(
        forgotten=pl.when(by_needles).then("margin_lost").otherwise("mean"),
        least=pl.when(by_needles).then("margin_lost_low").otherwise("low"),
        most=pl.when(by_needles).then("margin_lost_high").otherwise("high"),
        measure=pl.when(by_needles)
        .then(pl.lit("margin lost on needles"))
        .otherwise(pl.lit("excess NLL")),
        memory_mb=(pl.col("ranking_bytes") + pl.col("held_bytes")) / 1e6,
        panel=pl.format("{} tokens ({})", "budget_tokens", "threshold"),
        setting=pl.format("{}, {}", "model", "dataset"),
        first=pl.col("rank") == 1,
    )
    panels = [_panel(part) for part in data.partition_by("setting", "panel", maintain_order=True)]
    return alt.vconcat(*panels).resolve_scale(y="independent")


def _panel(data: pl.DataFrame) -> alt.TopLevelMixin:
    order = data.sort("rank", "policy")["policy"].to_list()
    measure = data["measure"][0]
    base = alt.Chart(data).encode(
        tooltip=["rank", "policy", "mean", "margin_lost", "recalled", "eviction_ms", "memory_mb"]
    )
    names = alt.Y("policy:N", sort=order, title=None, axis=alt.Axis(labelLimit=200))
    # The narrow form, where panels stand below each other, gives these their names.
    unnamed = alt.Y("policy:N", sort=order, title=None, axis=None)
    scale = alt.Scale(type="symlog", constant=0.05)
    ticks = alt.Axis(values=[-10, -1, -0.1, 0, 0.1, 1, 10], labelExpr=PLAIN)
    height = 18 * len(order)
    title = [measure, "nats per token, symmetric log", count_label(data)]
    lost = alt.X("forgotten:Q", title=title, scale=scale, axis=ticks)
    colour = alt.condition("datum.first", alt.value(BEST), alt.value(OTHERS))
    points = base.mark_point(filled=True, size=60).encode(x=lost, y=names, color=colour)
    bars = base.transform_filter("isValid(datum.least)").mark_rule(strokeWidth=2)
    bars = bars.encode(x=alt.X("least:Q", scale=scale), x2="most:Q", y=names, color=colour)
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    quality = alt.layer(zero, bars, points, data=data)
    quality = quality.properties(
        width=WIDTH * 0.42, height=height, title=[*data.select("panel", "setting").row(0)]
    )
    costs = [
        base.mark_bar(height=8, color="#56B4E9")
        .encode(
            x=alt.X(
                f"{name}:Q",
                title=title,
                scale=alt.Scale(type="symlog", constant=1),
                axis=alt.Axis(values=[0, 1, 10, 100, 1000, 10_000], labelExpr=PLAIN),
            ),
            y=unnamed,
        )
        .properties(width=WIDTH * 0.21, height=height)
        for name, title in (
            ("eviction_ms", ["an eviction", "milliseconds, log"]),
            ("memory_mb", ["extra memory", "MB, log"]),
        )
        if data[name].is_not_null().any()
    ]
    return alt.concat(quality, *costs, columns=3)
