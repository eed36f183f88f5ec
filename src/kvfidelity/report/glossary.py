"""What the page's terms and columns mean."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from kvfidelity.analysis.columns import TABLES
from kvfidelity.records.declaration import ColumnInfo

TERMS = {
    "token index": "number of a token in the whole conversation as fed to the model, from 0",
    "slot": "one cached token; slots are sorted by token index",
    "position": "the integer that RoPE rotates a key or a query by",
    "stale": "kept keys keep their rotation; the next position is the number of cached slots",
    "original": "kept keys keep their rotation; the next position is the number of tokens seen",
    "rerotated": "kept keys are rotated to 0, 1, 2, ...; the next position follows them",
    "corrected positions": "original or rerotated",
    "threshold, target": "the cache size that triggers an eviction, and the size after it",
    "cell": "model, dataset, policy, positions, threshold, seed; a run is a cell on one dialogue",
    "baseline": "the run in which nothing is evicted",
    "reference reply": "the dataset's reply; it is fed so that every policy sees the same history",
    "needle": "a fact inserted into a dialogue and asked for later",
    "excess NLL": "NLL of the reference reply minus the baseline's on the same turn",
}
#: Tables whose columns the page shows under their own names, and in the glossary.
SHOWN_TABLES = ("policies", "contrasts", "predictors", "recall_by_depth", "own_replies")


def shown_columns(tables: Mapping[str, pl.DataFrame]) -> list[tuple[str, list[ColumnInfo]]]:
    """The declared columns of the shown tables that have rows, by table."""
    return [(name, TABLES[name]) for name in SHOWN_TABLES if tables[name].height]
