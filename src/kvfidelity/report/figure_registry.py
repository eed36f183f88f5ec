"""All figures of the report: one entry each, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import altair as alt
import polars as pl

from kvfidelity.report import figures, timeline, tradeoffs
from kvfidelity.report.recall_figure import recall_figure

Tables = Mapping[str, pl.DataFrame]

#: How each figure is made of the tables. Its name is that of its files.
CHARTS: dict[str, Callable[[Tables], alt.TopLevelMixin]] = {
    "excess": lambda tables: figures.excess(tables["policies"]),
    "heat_map": lambda tables: tradeoffs.heat_map(tables["policies"]),
    "by_turn": lambda tables: figures.by_turn(tables["turns"]),
    "recall": lambda tables: recall_figure(tables["recall_by_depth"]),
    "predictor_ranking": lambda tables: tradeoffs.predictor_ranking(tables["predictors"]),
    "distortion": lambda tables: tradeoffs.distortion(tables["turns"], tables["predictors"]),
    "through_window": lambda tables: timeline.through_window(tables["window"]),
    "cache_size": lambda tables: figures.cache_size(tables["turns"]),
    "retention": lambda tables: figures.retention(tables["turns"], tables["evictions"]),
    "inside_turns": lambda tables: timeline.inside_turns(tables["turns"]),
    "pareto": lambda tables: tradeoffs.pareto(tables["policies"]),
    "latency": lambda tables: timeline.latency(tables["turns"]),
}
#: The tables that they are made of.
TABLES = ("turns", "evictions", "policies", "predictors", "window", "recall_by_depth")


def charts(tables: Tables) -> dict[str, alt.TopLevelMixin]:
    """Every figure by name; where there is nothing to draw, it says so.

    Args:
        tables: those named in TABLES.
    """
    return {name: chart(tables) for name, chart in CHARTS.items()}
