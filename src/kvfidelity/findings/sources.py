"""Which run a sentence is taken from: the finding that is about it, or, where that was not run yet,
another one with such cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from kvfidelity.findings.published import PublishedRun

#: Findings with all position modes at 5,600 to 2,000 tokens, the kept beginning among the policies,
#: and the threshold of that name.
MODES = {"equal_budgets": ("2000tok",), "disruption": ("turn",)}
#: Findings that plant facts, with the thresholds at which all policies were run, largest budget
#: first.
RECALL = {"equal_budgets": ("2000tok", "1000tok"), "question1": ("half", "quarter", "eighth")}


class Source(NamedTuple):
    """A run and its thresholds."""

    run: PublishedRun
    thresholds: tuple[str, ...]


def sources(
    runs: Sequence[PublishedRun], places: Mapping[str, tuple[str, ...]], table: str
) -> list[Source]:
    """For each model the first of the findings that was run with it and has rows in a table."""
    found: dict[str, Source] = {}
    for finding, thresholds in places.items():
        for run in runs:
            if run.finding.name == finding and run.tables[table].height:
                found.setdefault(run.model, Source(run, thresholds))
    order = list(dict.fromkeys(run.model for run in runs))
    return sorted(found.values(), key=lambda source: order.index(source.run.model))


def kept_tokens(run: PublishedRun) -> dict[str, str]:
    """ "2,000", by threshold: the tokens that evictions leave, where policies share one size."""
    rows = run.tables["policies"].select("threshold", "budget_tokens").drop_nulls().unique()
    return {threshold: f"{tokens:,}" for threshold, tokens in rows.iter_rows()}


def main_first(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of healings: those of the threshold that most were tried at first."""
    tried = pl.len().over("threshold")
    return rows.sort(-tried.cast(pl.Int64), "threshold", "positions", "policy")


def kept(source: Source, threshold: str) -> str:
    """ "2,000": the tokens that a threshold's evictions leave."""
    return kept_tokens(source.run).get(threshold, threshold)
