"""Which tables and columns of a run are published in `docs/findings/`.

A dialogue's words are in none of them: tables with a row per turn, question or verdict are left
out, and a text column is one of `NAMES`, which hold names, versions and dates.
"""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import TABLES
from kvfidelity.errors import UserError
from kvfidelity.findings.repetition import REPETITION
from kvfidelity.findings.timing import TIMING

#: Text columns that may be published: names of the configuration, of versions and of decisions.
NAMES = frozenset(
    {
        *("model", "dataset", "dialogue", "policy", "positions", "threshold", "kind", "replies"),
        *("origin", "depth", "change", "healing", "against", "metric", "factor", "group", "cells"),
        *(
            "arm",
            "against_positions",
            "against_not_inferior",
            "not_inferior",
            "cause",
            "loses",
            "positions_cost",
        ),
        *("ordered_by", "judge", "judge_kind", "measure", "claim", "direction", "decision"),
        *("margin_of", "tested_in", "hardware", "dtype", "code", "versions", "first_made"),
        *("last_made", "table", "column", "rule", "measured"),
    }
)
#: Every column of these that may be published is.
WHOLE = (
    *("policies", "leaderboard", "attribution", "baselines", "environments", "recall_by_depth"),
    *("window_changes", "own_replies", "verdict_means", "reliability", "prefill_overshoot"),
    *("balance", "balance_pairs", "healings", "predictors", "predictor_validation", "penalties"),
    *("finetuning", "claims", "jobs"),
)
#: Made when a run is published, not by the run.
DERIVED: dict[str, dict[str, Any]] = {"timing": TIMING, "repetition": REPETITION}
#: Of these, only some columns.
PART = {
    "dialogues": (
        *("model", "dataset", "policy", "positions", "threshold", "dialogue", "seed"),
        "excess_nll",
    ),
    "window": (
        *("model", "dataset", "kind", "dialogue", "seed", "trained_window", "start", "stop"),
        *("nll", "tokens"),
    ),
}
#: Letters of a name. A line break is none, nor is a quotation mark.
NAME = re.compile(r"[\w.,:+*/()=@%#|<> -]{0,300}")


def exported_schema(table: str) -> dict[str, Any]:
    """Name and dtype of the columns of a table that are published.

    Raises:
        KeyError: the table is not published.
    """
    if table in DERIVED:
        return dict(DERIVED[table])
    chosen = PART.get(table) or (table in WHOLE and tuple(info.name for info in TABLES[table]))
    if not chosen:
        raise KeyError(table)
    return {
        info.name: info.dtype
        for info in TABLES[table]
        if info.name in chosen and (info.dtype != pl.String or info.name in NAMES)
    }


#: All published tables.
EXPORTED = (*WHOLE, *PART, *DERIVED)
#: Published of every run.
ALWAYS = ("policies", "baselines", "environments", "claims", "jobs")
#: And of the runs of a question.
OF_QUESTION = {
    "paper": (
        *("attribution", "dialogues", "own_replies", "verdict_means", "reliability"),
        "prefill_overshoot",
    ),
    "budgets": ("attribution", "dialogues", "leaderboard", "recall_by_depth"),
    "window": ("window", "window_changes"),
    "checks": ("dialogues", "leaderboard", "recall_by_depth"),
    "question1": ("balance", "balance_pairs", "leaderboard", "recall_by_depth"),
    "question2": ("finetuning", "recall_by_depth", "own_replies"),
    "question3": ("dialogues", "predictors", "predictor_validation", "penalties"),
    "question4": ("healings",),
    "cost": ("timing",),
}


def published(name: str, table: pl.DataFrame) -> pl.DataFrame:
    """What of a run's table is published.

    Raises:
        UserError: a text that is no name, such as a sentence over several lines.
    """
    # A run of an earlier version lacks columns that came later.
    part = table.select(key for key in exported_schema(name) if key in table.columns)
    for column in part.select(pl.col(pl.String)).iter_columns():
        for value in column.drop_nulls().unique().sort():
            if not NAME.fullmatch(value):
                raise UserError(
                    f"table {name}, column {column.name}: {value[:40]!r} is not a name, and texts "
                    "are not published; rename it in the configuration"
                )
    return part
