"""Figure of the tokens that stay cached, a map for each policy."""

from __future__ import annotations

from itertools import pairwise

import altair as alt
import numpy as np
import polars as pl

from kvfidelity.report.figures import NO_EVICTION, first_dialogue, nothing, panel_label, thinned

#: Stretches of tokens in a map.
BINS = 96
SCHEMA = {
    "panel": pl.String,
    "turn": pl.Int32,
    "start": pl.Int64,
    "stop": pl.Int64,
    "kept": pl.Float64,
}


def retention(turns: pl.DataFrame, evictions: pl.DataFrame) -> alt.TopLevelMixin:
    """Which tokens survive: share of each stretch of the first dialogue still cached, by turn."""
    data = retention_table(turns, evictions)
    if data.is_empty():
        return nothing(NO_EVICTION)
    data = thinned(data).with_columns(pl.col("turn") + 1)  # a person counts from one
    title = first_dialogue(turns)[1]
    return (
        alt.Chart(data, title=title)
        .mark_rect()
        .encode(
            x=alt.X("start:Q", title="token index in the conversation", bin="binned"),
            x2="stop",
            y=alt.Y("turn:O", title="turn", sort="ascending", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                "kept:Q",
                title="share cached",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            ),
            tooltip=["panel", "turn", "start", "stop", "kept"],
        )
        .properties(width=250, height=150)
        .facet(facet=alt.Facet("panel:N", title=None), columns=2)
        .resolve_scale(x="shared", y="shared")
    )


def retention_table(turns: pl.DataFrame, evictions: pl.DataFrame) -> pl.DataFrame:
    """Share of each of 96 stretches of tokens that is cached at the end of each turn.

    Of the first dialogue, one panel per policy and threshold, under stale or else the last position
    mode by name; keep sets by layer or head are averaged. A turn for which memory ran out has no
    end.
    """
    ended = turns.filter(pl.col("kind") != "baseline", pl.col("tokens_seen_end").is_not_null())
    first = first_dialogue(ended)[0]
    mode = pl.col("positions").max().over("policy", "threshold")
    runs = first.filter(pl.col("positions") == mode).with_columns(panel=panel_label(first))
    logs = evictions.partition_by("run", as_dict=True)
    rows: list[tuple[str, int, int, int, float]] = []
    for (run, panel), part in runs.group_by("run", "panel", maintain_order=True):
        log = logs.get((run,), evictions.clear())
        total = int(part["tokens_seen_end"].max())  # type: ignore[arg-type]
        edges = sorted({round(total * number / BINS) for number in range(BINS + 1)})
        for turn, end in part.sort("turn").select("turn", "tokens_seen_end").iter_rows():
            before, sets = cached_before(log.filter(pl.col("turn") <= turn), end)
            for start, stop in pairwise([*(edge for edge in edges if edge < end), end]):
                inside = int(before[stop] - before[start])
                rows.append((str(panel), turn, start, stop, inside / sets / (stop - start)))
    return _merge_equal_neighbours(pl.DataFrame(rows, SCHEMA, orient="row"))


def cached_before(log: pl.DataFrame, end: int) -> tuple[np.ndarray, int]:
    """What the last eviction of a log left, and what was fed since, up to token index `end`.

    Args:
        log: evictions of one run.

    Returns:
        For each token index up to `end`, how many tokens before it are cached, summed over keep
        sets: int64 [end + 1]; and how many keep sets there are.
    """
    if log.is_empty():
        return np.arange(end + 1), 1
    last = log.filter(pl.col("step") == log["step"].max())
    spans = last["token_spans"].explode().drop_nulls().struct.unnest()
    fed = int(last["tokens_seen"][0])
    change = np.zeros(end + 1, dtype=np.int64)
    for name, by in (("start", 1), ("stop", -1)):
        np.add.at(change, spans[name].to_numpy().clip(max=end), by)
    change[min(fed, end)] += last.height
    held = np.cumsum(change[:end])
    return np.concatenate([[0], np.cumsum(held)]), last.height


def _merge_equal_neighbours(cells: pl.DataFrame) -> pl.DataFrame:
    """Neighbours with the same share as one: most of a map is all kept or all gone."""
    keys = ["panel", "turn"]
    number = pl.struct(*keys, "kept").rle_id().alias("stretch")
    return (
        cells.with_columns(number)
        .group_by("stretch", *keys, "kept", maintain_order=True)
        .agg(pl.col("start").min(), pl.col("stop").max())
        .select(cells.columns)
    )
