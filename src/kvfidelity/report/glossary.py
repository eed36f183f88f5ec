"""What the page's terms and columns mean."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from kvfidelity.analysis.columns import TABLES
from kvfidelity.records.declaration import ColumnInfo
from kvfidelity.report.position_modes import PRESENTATIONS

TERMS = {
    "token index": "number of a token in the whole conversation as fed to the model, from 0",
    "slot": "one cached token; slots are sorted by token index",
    "position": "the integer that RoPE rotates a key or a query by",
    **{mode.value: shown.meaning for mode, shown in PRESENTATIONS.items()},
    "corrected positions": "original or rerotated: no key is at or after the next token's position",
    "threshold, target": "the cache size that triggers an eviction, and the size after it",
    "budget": "tokens that an eviction leaves cached; missing if policies set their own size",
    "cell": "model, dataset, policy, positions, threshold, seed; a run is a cell on one dialogue",
    "baseline": "the run in which nothing is evicted",
    "reference reply": "the dataset's reply; it is fed so that every policy sees the same history",
    "span": "a contiguous stretch of kept tokens; the fewer spans, the less scattered they are",
    "needle": "a fact inserted into a dialogue and asked for later",
    "depth": "how far along the conversation a needle is: early, middle or recent (the latest)",
    "excess NLL": "NLL of the reference reply minus the baseline's on the same turn, in nats per "
    "token; 0 is no loss, 0.69 halves the probability of every token",
    "retained share": "cached tokens of those seen",
}
#: Tables whose columns the page shows under their own names, and in the glossary.
SHOWN_TABLES = (
    "ranking",
    "policies",
    "attribution",
    "claims",
    "contrasts",
    "predictors",
    "predictor_validation",
    "penalties",
    "recall_by_depth",
    "own_replies",
)


def shown_columns(tables: Mapping[str, pl.DataFrame]) -> list[tuple[str, list[ColumnInfo]]]:
    """The declared columns of the shown tables that have rows, by table."""
    return [(name, TABLES[name]) for name in SHOWN_TABLES if tables[name].height]
