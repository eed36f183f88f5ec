"""The report's figures: altair charts, colour-blind safe, intervals drawn."""

from __future__ import annotations

import math
import textwrap

import altair as alt
import polars as pl

from kvfidelity.analysis.statistics import t_intervals
from kvfidelity.records.grid import CELL_COLUMNS, POSITIONS
from kvfidelity.report.dots import ONE, dots, of_means, with_dots, with_interval
from kvfidelity.report.formatting import count
from kvfidelity.report.position_modes import PRESENTATIONS, position_order, presentation

MODE_COLOURS = alt.Scale(
    domain=list(POSITIONS), range=[shown.colour for shown in PRESENTATIONS.values()]
)
MODE_SHAPES = alt.Scale(
    domain=list(POSITIONS), range=[shown.marker for shown in PRESENTATIONS.values()]
)
#: Lines that lie on each other stay two: what is drawn later has gaps.
MODE_DASHES = ([1, 0], [8, 4], [3, 3])
WIDTH = 560
#: Rows of a figure of one dialogue at most: of a longer one every so many turns are drawn.
MAX_ROWS = 5_000
#: Letters of a line that says why there is nothing to draw.
NOTHING_LETTERS = 40
NO_EVICTION = "no policy that evicts came to the end of a turn"
NO_LOSS = "no reference reply was scored after an eviction inside the trained window"


def nothing(why: str) -> alt.Chart:
    """A figure of a few words: why there is nothing to draw. A phone's screen holds each line."""
    lines = textwrap.wrap(f"Nothing to draw: {why}.", NOTHING_LETTERS)
    chart = alt.Chart(alt.InlineData(values=[{"why": "\n".join(lines)}]))
    text = chart.mark_text(
        align="left", baseline="top", lineBreak="\n", fontSize=13, fontStyle="italic"
    )
    placed = text.encode(text="why:N", x=alt.value(0), y=alt.value(0))
    return placed.properties(width=WIDTH, height=20 * len(lines))


def dialogue_losses(dialogues: pl.DataFrame) -> pl.DataFrame:
    """Excess NLL of each dialogue in each cell, mean over seeds: the cell and ONE."""
    known = dialogues.filter(pl.col("excess_nll").is_not_null())
    means = known.group_by(*CELL_COLUMNS, "dialogue", maintain_order=True).agg(
        pl.col("excess_nll").mean().alias(ONE)
    )
    return means.drop("dialogue")


def mode_colour(rows: pl.DataFrame) -> alt.Color:
    """The colours of the position modes that rows have; others are in no legend."""
    return alt.Color("positions:N", scale=_of_present(MODE_COLOURS, rows), title="positions")


def mode_shape(rows: pl.DataFrame) -> alt.Shape:
    """The shapes of the position modes that rows have: colour alone tells nothing in grey."""
    return alt.Shape("positions:N", scale=_of_present(MODE_SHAPES, rows), title="positions")


def _of_present(scale: alt.Scale, rows: pl.DataFrame) -> alt.Scale:
    shown = look_of(scale, rows["positions"])
    return alt.Scale(domain=list(shown), range=list(shown.values()))


def look_of(scale: alt.Scale, modes: pl.Series) -> dict[str, str]:
    """The colour or marker of the modes that a column has, in their order."""
    attribute = "colour" if scale is MODE_COLOURS else "marker"
    known = dict(zip(scale.domain, scale.range, strict=True))
    names = sorted(modes.drop_nulls().unique().to_list(), key=position_order)
    return {name: known.get(name) or getattr(presentation(name), attribute) for name in names}


def excess(policies: pl.DataFrame, dialogues: pl.DataFrame) -> alt.TopLevelMixin:
    """Excess NLL by policy and position mode with intervals, and a dot per dialogue if they are
    few, on a symmetric log axis. Cells of one threshold stand together, the least loss first."""
    if policies.is_empty():
        return nothing(NO_LOSS)
    data = policies.with_columns(
        pl.format("dialogues: {}, turns: {}", "n_dialogues", "n_turns").alias("n"),
        row=distinct_label(policies),
    )
    setting = ["model", "dataset", "threshold"]
    best = pl.col("mean").min().over(*setting, "policy")
    rows = data.sort(*setting, best)["row"].unique(maintain_order=True).to_list()
    data = with_dots(data, dialogue_losses(dialogues), CELL_COLUMNS)
    scale = alt.Scale(type="symlog", constant=0.01)
    values = [-0.1, 0, 0.1, 1, 10]
    base = alt.Chart(data).encode(
        y=alt.Y("row:N", title=None, axis=alt.Axis(labelLimit=240), sort=rows),
        yOffset=alt.YOffset("positions:N", sort=list(POSITIONS)),
        color=mode_colour(policies).legend(orient="top"),
        tooltip=[*CELL_COLUMNS, "mean", "low", "high", "n"],
    )
    title = ["excess NLL of the reference reply (nats per token, symmetric log)", count_label(data)]
    axis = alt.Axis(values=values, format="~g", grid=True)
    points = of_means(base).mark_point(filled=True, size=80)
    points = points.encode(
        x=alt.X("mean:Q", scale=scale, title=title, axis=axis),
        shape=mode_shape(policies).legend(orient="top"),
    )
    bars = with_interval(base).mark_rule(strokeWidth=2)
    bars = bars.encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    each = dots(base, alt.X(f"{ONE}:Q", scale=scale))
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    # A policy that ran under one mode takes as much room as that mode.
    lines = policies.select("model", "dataset", "threshold", "policy", "positions").unique().height
    height = 22 * lines + 14 * len(rows)
    layers = alt.layer(zero, bars, each, points, data=data)
    return layers.properties(width=0.7 * WIDTH, height=height)


def first_dialogue(turns: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The turns of the first dialogue, model, data set and seed, and their names if there are
    others."""
    names = ("model", "dataset", "dialogue", "seed")
    first = turns.filter(pl.col(names[0]) == pl.col(names[0]).min())
    for name in names[1:]:
        first = first.filter(pl.col(name) == pl.col(name).min())
    several = turns.select(pl.struct("model", "dataset").n_unique()).item() > 1
    return first, ", ".join(first.row(0, named=True)[name] for name in names[:2] if several)


def cache_size(turns: pl.DataFrame) -> alt.TopLevelMixin:
    """Cached tokens over tokens seen of the first dialogue, one panel per policy and threshold; the
    baseline is in each."""
    first, title = first_dialogue(turns)
    # The size does not depend on the position mode.
    mode = pl.col("positions").min().over("policy", "threshold")
    one_mode = first.filter(pl.col("positions") == mode)
    moments = [
        ("slots_start", pl.col("tokens_seen_start")),
        ("slots_after_eviction", pl.col("tokens_seen_start")),
        ("slots_after_prefill", pl.col("tokens_seen_start") + pl.col("prompt_tokens")),
        ("slots_end", pl.col("tokens_seen_end")),
    ]
    data = pl.concat(
        one_mode.select(
            *("policy", "threshold", "kind", "turn"),
            moment=pl.lit(step),
            seen=seen,
            slots=pl.col(name),
        )
        for step, (name, seen) in enumerate(moments)
    )
    data = data.drop_nulls(["slots", "seen"])
    if data.is_empty():
        return nothing("memory ran out in the first turn")
    data = data.with_columns(step=pl.col("turn") * len(moments) + pl.col("moment"))
    managed = data.filter(pl.col("kind") != "baseline")
    baseline = data.filter(kind="baseline")
    if managed.is_empty():
        panels = baseline.with_columns(panel="policy", line="policy")
    else:
        managed = managed.with_columns(panel=panel_label(managed), line=pl.lit("policy"))
        names = managed.select("panel").unique(maintain_order=True)
        again = baseline.with_columns(line=pl.lit("baseline")).join(names, how="cross")
        panels = pl.concat([again, managed], how="diagonal")
    panels = thinned(panels).sort("panel", "line", "step").with_columns(pl.col("turn") + 1)
    chart = (
        alt.Chart(panels, title=title)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("seen:Q", title="tokens seen"),
            y=alt.Y("slots:Q", title="cached tokens"),
            color=alt.Color(
                "line:N",
                title=None,
                scale=alt.Scale(domain=["policy", "baseline"], range=["#0072B2", "#888"]),
            ),
            strokeDash=alt.StrokeDash(
                "line:N",
                title=None,
                scale=alt.Scale(domain=["policy", "baseline"], range=[[1, 0], [4, 3]]),
            ),
            order="step:Q",
            tooltip=["policy", "threshold", "turn", "seen", "slots"],
        )
        .properties(width=250, height=110)
    )
    return chart.facet(facet=alt.Facet("panel:N", title=None), columns=2)


def count_label(rows: pl.DataFrame, column: str = "n_dialogues") -> str:
    """ "n = 5 dialogues", or "n = 3 to 5 dialogues" where rows differ."""
    counts = sorted(int(n) for n in rows[column].drop_nulls()) or [0]
    least, most = counts[0], counts[-1]
    if least == most:
        return f"n = {count(most, 'dialogue')}"
    return f"n = {least} to {most} dialogues"


def distinct_label(rows: pl.DataFrame) -> pl.Expr:
    """A row's name: the policy, and all else that differs between rows."""
    names = ("threshold", "dataset", "model")
    varied = [name for name in names if rows[name].drop_nulls().n_unique() > 1]
    return pl.concat_str(["policy", *varied], separator=", ", ignore_nulls=True)


def panel_label(rows: pl.DataFrame) -> pl.Expr:
    """A panel's name where panels are of one setting: the policy, and its threshold if the policies
    have several."""
    several = rows["threshold"].n_unique() > 1
    return pl.format("{}, {}", "policy", "threshold") if several else pl.col("policy")


def thinned(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of every so many turns, so that about MAX_ROWS are left."""
    step = max(1, math.ceil(rows.height / MAX_ROWS))
    return rows.filter(pl.col("turn") % step == 0)


def integer_axis(numbers: pl.Series) -> alt.Axis:
    """An axis with ticks at whole numbers only, about ten of them."""
    last = int(numbers.max() or 0)  # type: ignore[arg-type]
    return alt.Axis(values=list(range(0, last + 1, max(1, last // 10))), format="d")


def by_turn(turns: pl.DataFrame) -> alt.TopLevelMixin:
    """Excess NLL by turns since the first eviction: mean over dialogues, 95% t-intervals, and at
    the foot of how many dialogues: they end, and the last turns are of few."""
    late = turns.filter("after_eviction", "inside_window", pl.col("excess_nll").is_not_null())
    if late.is_empty():
        return nothing(NO_LOSS)
    data = late.with_columns(
        since=pl.col("turn") - pl.col("turn").min().over("run"), panel=distinct_label(late)
    )
    keys = ["panel", "positions", "since"]
    # Seeds of one dialogue are one observation. In order: the last digits of a sum depend on it.
    each = data.group_by(*keys, "dialogue", maintain_order=True).agg(pl.col("excess_nll").mean())
    means = t_intervals(each, keys, "excess_nll").sort(keys)
    rows = with_dots(means, each.rename({"excess_nll": ONE}), keys)
    axis = alt.Axis(values=[-0.1, 0, 0.1, 1, 10], format="~g")
    scale = alt.Scale(type="symlog", constant=0.05)
    base = alt.Chart(rows).encode(
        x=alt.X(
            "since:Q", title="turns since the first eviction", axis=integer_axis(means["since"])
        ),
        color=mode_colour(late),
    )
    band = with_interval(base).mark_area(opacity=0.15, aria=False)
    dashes = alt.Scale(domain=list(POSITIONS), range=MODE_DASHES)
    line = of_means(base).mark_line(aria=False)
    line = line.encode(strokeDash=alt.StrokeDash("positions:N", scale=dashes, legend=None))
    value = alt.Y("mean:Q", title="excess NLL (nats)", scale=scale, axis=axis)
    # Hollow, so that one mode's points do not cover another's.
    points = of_means(base).mark_point(filled=False, size=40)
    points = points.encode(
        y=value,
        shape=mode_shape(late),
        tooltip=["panel", "positions", "since", "mean", "low", "high", "n"],
    )
    one = dots(base, alt.Y(f"{ONE}:Q", scale=scale))
    counts = base.transform_aggregate(n="min(n)", groupby=["panel", "since"]).mark_text(
        fontSize=9, opacity=0.75, aria=False
    )
    counts = counts.encode(y=alt.value(125), text="n:Q", color=alt.value("currentColor"))
    band = band.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    layers = alt.layer(band, one, line.encode(y=value), points, counts)
    return (
        layers.properties(width=250, height=130)
        .facet(facet=alt.Facet("panel:N", title=None), columns=2)
        .resolve_axis(x="independent")
    )
