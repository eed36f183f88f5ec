"""Figures of what happens along a conversation and inside a turn."""

from __future__ import annotations

import altair as alt
import polars as pl

from kvfidelity.analysis.statistics import t_intervals
from kvfidelity.report.dots import ONE, dots, of_means, with_dots, with_interval
from kvfidelity.report.figures import (
    NO_EVICTION,
    WIDTH,
    count_label,
    distinct_label,
    first_dialogue,
    integer_axis,
    nothing,
    panel_label,
    thinned,
)

MOMENTS = {
    "start": "cache_bytes_start",
    "before prefill": "bytes_before_prefill",
    "after prefill": "cache_bytes_after_prefill",
    "end": "cache_bytes_end",
}
SECONDS = {
    "prefill": "prefill_s",
    "scoring": "scoring_s",
    "eviction": "eviction_s",
    "decode": "decode_s",
}


def through_window(window: pl.DataFrame) -> alt.TopLevelMixin:
    """NLL of the baseline's reference replies by token index, mean over dialogues with 95%
    t-intervals, and a dot per dialogue if they are few; a dashed line where the trained window
    ends, if a dialogue gets there."""
    window = window.filter(kind="baseline")
    if window.is_empty():
        return nothing("no reference reply was scored with nothing evicted")
    keys = ["model", "trained_window", "start", "stop"]
    # Seeds of one dialogue are one observation.
    each = window.group_by(*keys, "dataset", "dialogue", maintain_order=True).agg(
        pl.col("nll").mean()
    )
    data = with_dots(t_intervals(each, keys, "nll"), each.rename({"nll": ONE}), keys)
    data = data.with_columns(
        middle=(pl.col("start") + pl.col("stop")) / 2,
    ).sort("model", "start")
    base = alt.Chart(data).encode(
        x=alt.X("middle:Q", title="token index in the conversation"),
        color=alt.Color("model:N", title="model", scale=alt.Scale(range=["#0072B2", "#D55E00"])),
    )
    bars = with_interval(base).mark_rule(opacity=0.5)
    each_dialogue = dots(base, alt.Y(f"{ONE}:Q"))
    points = of_means(base).mark_point(filled=True, size=40)
    points = points.encode(
        y=alt.Y("mean:Q", title=["NLL (nats per token)", count_label(data, "n")]),
        shape=alt.Shape("model:N", legend=None),
        tooltip=["model", "start", "stop", "mean", "low", "high", "n"],
    )
    reached = data.filter(pl.col("stop") > pl.col("trained_window"))
    edges = reached.select("trained_window").unique()
    edge = alt.Chart(edges).mark_rule(color="#888", strokeDash=[4, 3]).encode(x="trained_window:Q")
    layers = [
        bars.encode(y="low:Q", y2="high:Q"),
        each_dialogue,
        points,
        *([edge] if edges.height else []),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=200)


def inside_turns(turns: pl.DataFrame) -> alt.TopLevelMixin:
    """Cache bytes at four moments of each turn, one dialogue, one panel per policy and threshold:
    what prefill adds.

    The first position mode stands for all, for they hold as many bytes.
    """
    managed = turns.filter(pl.col("kind") != "baseline", pl.col("cache_bytes_end").is_not_null())
    if managed.is_empty():
        return nothing(NO_EVICTION)
    first, title = first_dialogue(managed)
    mode = pl.col("positions").min().over("policy", "threshold")
    chosen = first.filter(pl.col("positions") == mode).with_columns(
        panel=panel_label(first),
        bytes_before_prefill=(pl.col("slots_after_prefill") - pl.col("prompt_tokens"))
        * pl.col("token_bytes"),
    )
    data = pl.concat(
        chosen.select(
            "panel",
            "turn",
            moment=pl.lit(name),
            at=pl.col("turn") + 1 + number / len(MOMENTS),
            megabytes=pl.col(column) / 1e6,
            limit=pl.col("threshold_tokens") * pl.col("token_bytes") / 1e6,
        )
        for number, (name, column) in enumerate(MOMENTS.items())
    ).sort("panel", "at")
    data = thinned(data).with_columns(pl.col("turn") + 1)  # a person counts from one
    base = alt.Chart(data).encode(
        x=alt.X(
            "at:Q",
            title="turn",
            axis=integer_axis(data["turn"]),
            scale=alt.Scale(zero=False, nice=False),
        )
    )
    line = base.mark_line(color="#0072B2", aria=False).encode(
        y=alt.Y("megabytes:Q", title="cache (MB)")
    )
    points = base.mark_point(filled=True, size=22, color="#0072B2").encode(
        y="megabytes:Q", tooltip=["panel", "turn", "moment", "megabytes", "limit"]
    )
    limit = base.mark_rule(color="#D55E00", strokeDash=[4, 3]).encode(x=alt.X(), y="mean(limit):Q")
    layers = alt.layer(line, points, limit).properties(width=250, height=110)
    return layers.facet(facet=alt.Facet("panel:N", title=None), columns=2, title=title)


def latency(turns: pl.DataFrame) -> alt.TopLevelMixin:
    """Milliseconds of each part of a turn, each on its own axis: medians, and a dot per dialogue.

    A dialogue's value is the median of its turns, a policy's that of its dialogues: the first turn
    of a process warms up and would move a mean. Turns computed once for all policies, and those
    decoded together with others, are left out; decoding is of those with a reply of their own.
    """
    single = turns.filter(~pl.col("shared_prefix") & (pl.col("concurrency") == 1))
    if single.is_empty():
        return nothing(
            "all runs were computed together with others; session.batch_size: 1 times each alone"
        )
    # The baseline has no threshold to be named by.
    named = single.with_columns(threshold=pl.when(pl.col("kind") != "baseline").then("threshold"))
    single = named.with_columns(
        row=distinct_label(named), decode_s=pl.col("tpot_s") * pl.col("reply_token_count")
    )
    each = single.group_by("row", "model", "dataset", "dialogue", maintain_order=True).agg(
        pl.col(*SECONDS.values()).median() * 1000
    )
    parts = [
        each.select("row", part=pl.lit(part), one=pl.col(column)).drop_nulls("one")
        for part, column in SECONDS.items()
    ]
    data = pl.concat(parts).sort("row")
    medians = data.group_by("row", "part", maintain_order=True).agg(
        median=pl.col("one").median(), n=pl.len()
    )
    rows = pl.concat([medians, data], how="diagonal")
    base = alt.Chart(rows).encode(y=alt.Y("row:N", title=None, axis=alt.Axis(labelLimit=160)))
    middle = base.transform_filter("isValid(datum.median)")
    bars = middle.mark_bar(color="#56B4E9", opacity=0.85).encode(
        x=alt.X("median:Q", title=["ms per turn"], axis=alt.Axis(tickCount=3)),
        tooltip=["row", "part", "median", "n"],
    )
    each_dialogue = dots(base, alt.X(f"{ONE}:Q", title=""))
    counts = middle.mark_text(align="left", dx=3, dy=-7, fontSize=8, aria=False)
    counts = counts.transform_calculate(label="'n = ' + datum.n").encode(
        x=alt.value(0), text="label:N"
    )
    return (
        alt.layer(bars, each_dialogue, counts)
        .properties(width=118, height=alt.Step(28))
        .facet(facet=alt.Facet("part:N", title=None, sort=list(SECONDS)), columns=4)
        .resolve_scale(x="independent")
    )
