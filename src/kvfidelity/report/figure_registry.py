"""All figures of the report: one entry each, in the order of the page.

The Snakefile reads this list, so nothing here imports altair or polars. To add a figure, write its
function and add an entry: the workflow's outputs, the page and Snakemake's report follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair as alt
    import polars as pl


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: of its files.
        function: what draws it, as "module.function" in `kvfidelity.report`. It takes the tables
            and returns an altair chart; if there is nothing to draw, one that says why.
        tables: the tables that the function takes, in order.
        section: the page's section: one of `SECTIONS`.
        category: the heading in Snakemake's own report.
        alt_text: what a screen reader says.
        caption: text below the figure; {level} is the confidence in percent.
        columns: the columns of large tables that the function uses, by table, METRICS standing for
            those of its values; a table that is not named here is read as a whole.
    """

    name: str
    function: str
    tables: tuple[str, ...]
    section: str
    category: str
    alt_text: str
    caption: str
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def caption_with(self, confidence: float) -> str:
        """The caption with the report's setting filled in."""
        return self.caption.format(level=round(100 * confidence))


#: Places on the page where figures stand, from top to bottom.
SECTIONS = (
    *("answer", "heat_map", "policies", "recall", "cache", "evictions", "positions", "window"),
    *("budgets", "cost"),
)
#: In the columns of a figure: all integrity and disruption metrics.
METRICS = "METRICS"
#: What says which turn of which run a row of `turns` is.
IDENTITY = (
    *("run", "model", "dataset", "policy", "positions", "threshold", "kind", "dialogue", "seed"),
    "turn",
)
SCORED = ("after_eviction", "inside_window", "excess_nll")
TOKENS = ("slots_after_prefill", "prompt_tokens", "threshold_tokens", "token_bytes")
FIGURES = (
    Figure(
        "excess",
        function="figures.excess",
        tables=("policies", "dialogues"),
        section="answer",
        category="Quality",
        alt_text="Excess NLL by policy and position mode with intervals",
        caption="Excess NLL of the reference reply over the baseline. Points are token-weighted "
        "means, bars {level}% intervals over dialogues; each small dot is a dialogue.",
    ),
    Figure(
        "heat_map",
        function="tradeoffs.heat_map",
        tables=("policies",),
        section="heat_map",
        category="Quality",
        alt_text="Heat map of excess NLL by policy and position mode; the numbers are in the table",
        caption="Mean excess NLL, nats per token, of every policy under every position mode, with "
        "the number of dialogues; darker is worse.",
    ),
    Figure(
        "by_turn",
        function="figures.by_turn",
        tables=("turns",),
        section="policies",
        category="Quality",
        alt_text="Excess NLL by turns since the first eviction, one panel per policy, one line per "
        "position mode",
        caption="Excess NLL by turns since the first eviction, mean over dialogues. Bands are 95% "
        "t-intervals where there are at least two dialogues, small dots are dialogues; the numbers "
        "at the foot say how many.",
        columns={"turns": (*IDENTITY, *SCORED)},
    ),
    Figure(
        "leaderboard",
        function="leaderboard_figure.leaderboard_figure",
        tables=("leaderboard",),
        section="policies",
        category="Quality",
        alt_text="Policies in the order of what they forget at equal bytes, with the milliseconds "
        "and the memory of an eviction; the table leaderboard holds the numbers",
        caption="What each policy forgets at equal bytes under corrected positions, one panel per "
        "budget, the least first: the margin lost on needles where they were asked for, else "
        "excess NLL; bars are {level}% intervals over dialogues. Right: medians of the "
        "milliseconds of an eviction and of the memory beyond the cache that its ranking took and "
        "that is held for it.",
    ),
    Figure(
        "recall",
        function="recall_figure.recall_figure",
        tables=("recall_by_depth", "recall"),
        section="recall",
        category="Recall",
        alt_text="Share of questions answered right by depth, policy and position mode, with "
        "intervals; the table below holds the numbers",
        caption="Share of questions answered right (the right answer is likelier than every "
        "distractor), by the depth of the evidence; bars are {level}% intervals over dialogues; "
        "a ring is larger the more dialogues have this share. Dashed: guessing.",
    ),
    Figure(
        "cache_size",
        function="figures.cache_size",
        tables=("turns",),
        section="cache",
        category="Cache",
        alt_text="Cached tokens over tokens seen, one panel per policy and threshold, with the "
        "baseline in each",
        caption="Cached tokens over tokens seen, first dialogue, by policy and threshold; dashed: "
        "the baseline. The size does not depend on the position mode.",
        columns={
            "turns": (
                *(*IDENTITY, "tokens_seen_start", "prompt_tokens", "tokens_seen_end"),
                *("slots_start", "slots_after_eviction", "slots_after_prefill", "slots_end"),
            )
        },
    ),
    Figure(
        "retention",
        function="retention_figure.retention",
        tables=("turns", "evictions"),
        section="evictions",
        category="Cache",
        alt_text="Which tokens are cached at the end of each turn, one panel per policy and "
        "threshold",
        caption="Retention map of the first dialogue, by policy and threshold: share of each "
        "stretch of tokens that is still cached at the end of a turn.",
        columns={
            "turns": (*IDENTITY, "tokens_seen_end"),
            "evictions": ("run", "turn", "step", "tokens_seen", "token_spans"),
        },
    ),
    Figure(
        "inside_turns",
        function="timeline.inside_turns",
        tables=("turns",),
        section="evictions",
        category="Cache",
        alt_text="Cache size at four moments of every turn, by policy and threshold",
        caption="Cache size inside turns, first dialogue, by policy and threshold: at the start, "
        "before and after the prompt was fed, and at the end. Dashed: the threshold.",
        columns={
            "turns": (
                *(*IDENTITY, *TOKENS),
                *("cache_bytes_start", "cache_bytes_after_prefill", "cache_bytes_end"),
            )
        },
    ),
    Figure(
        "predictor_ranking",
        function="tradeoffs.predictor_ranking",
        tables=("predictors", "turns"),
        section="positions",
        category="Positions",
        alt_text="Rank correlation of each integrity metric with excess NLL within turns, with "
        "intervals",
        caption="Spearman’s correlation with excess NLL among the cells of one dialogue and turn, "
        "averaged over dialogues on Fisher’s scale; turns after an eviction and inside the window. "
        "Bars are {level}% intervals over dialogues, small dots are dialogues. Cells of a turn "
        "share kept tokens across modes, so this is association, not cause.",
        columns={"turns": (*IDENTITY, *SCORED, METRICS)},
    ),
    Figure(
        "best_predictor",
        function="tradeoffs.best_predictor",
        tables=("turns", "predictors"),
        section="positions",
        category="Positions",
        alt_text="Excess NLL of every turn against the metric that orders the cells of a turn most "
        "like their loss, with its rank correlation",
        caption="Excess NLL of every turn after an eviction against the metric that orders the "
        "cells of a turn most like their loss, which was chosen on these data; of many turns an "
        "even share is drawn. ρ: Spearman’s correlation within turns, mean over n dialogues.",
        columns={"turns": (*IDENTITY, *SCORED, METRICS)},
    ),
    Figure(
        "through_window",
        function="timeline.through_window",
        tables=("window",),
        section="window",
        category="Quality",
        alt_text="NLL of the baseline’s reference replies by token index, with intervals",
        caption="Reference replies with nothing evicted, mean over dialogues by token index; bars "
        "are 95% t-intervals, small dots are dialogues. Dashed: the end of the trained window, if "
        "a dialogue gets there.",
    ),
    Figure(
        "pareto",
        function="tradeoffs.pareto",
        tables=("policies", "dialogues"),
        section="budgets",
        category="Cost",
        alt_text="Excess NLL against cache bytes, one mark per cell",
        caption="Excess NLL against the bytes of the cache; each small dot is a dialogue. "
        "Dashed: cells that no other beats in both. Cells with other budgets are not ranked "
        "against each other.",
    ),
    Figure(
        "latency",
        function="timeline.latency",
        tables=("turns",),
        section="cost",
        category="Cost",
        alt_text="Milliseconds per turn by policy, split into prefill, scoring, eviction and "
        "decoding",
        caption="Milliseconds per turn on this machine, each part on its own axis: medians over "
        "dialogues of the medians of their turns; each small dot is a dialogue. Turns computed "
        "once for all policies, and those whose replies were decoded together with others "
        "(session.batch_size), are left out. Decoding is over turns with an own reply.",
        columns={
            "turns": (
                *(*IDENTITY, "shared_prefix", "concurrency", "reply_token_count"),
                *("prefill_s", "scoring_s", "eviction_s", "tpot_s"),
            )
        },
    ),
)
#: All tables that figures are made of.
TABLES = tuple(sorted({name for figure in FIGURES for name in figure.tables}))


def columns_of(table: str, figures: Iterable[Figure] = FIGURES) -> set[str] | None:
    """The columns of a table that figures use; None if one of them does not say which."""
    from kvfidelity.records.columns import DISRUPTION, INTEGRITY

    users = [figure for figure in figures if table in figure.tables]
    if any(table not in figure.columns for figure in users):
        return None
    names = {name for figure in users for name in figure.columns[table]}
    return names - {METRICS} | ({*INTEGRITY, *DISRUPTION} if METRICS in names else set())


def read_tables(folder: Path) -> dict[str, pl.DataFrame]:
    """The tables that figures are made of, without the columns that none of them uses."""
    from kvfidelity.records.artifacts import read_parquet

    return {
        name: read_parquet(folder / f"{name}.parquet", kind=name, columns=columns_of(name))
        for name in TABLES
    }


def charts(tables: Mapping[str, pl.DataFrame]) -> dict[str, alt.TopLevelMixin]:
    """Every figure's chart by name.

    Args:
        tables: those named in TABLES.
    """
    return {figure.name: chart_of(figure, tables) for figure in FIGURES}


def chart_of(figure: Figure, tables: Mapping[str, pl.DataFrame]) -> alt.TopLevelMixin:
    """One figure's chart."""
    # Imported here: the Snakefile needs none of them.
    from kvfidelity.report import (
        figures,
        leaderboard_figure,
        recall_figure,
        retention_figure,
        timeline,
        tradeoffs,
    )

    modules = {
        module.__name__.rsplit(".", 1)[1]: module
        for module in (
            figures,
            leaderboard_figure,
            recall_figure,
            retention_figure,
            timeline,
            tradeoffs,
        )
    }
    module, function = figure.function.split(".")
    draw = getattr(modules[module], function)
    chart: alt.TopLevelMixin = draw(*(tables[name] for name in figure.tables))
    return chart
