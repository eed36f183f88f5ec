"""The tables of a run: which rule writes each, and as which files.

The Snakefile reads this list, so nothing here imports polars. Their columns are in `columns`, and
how some are laid out for papers in `report.paper_tables`.
"""

from __future__ import annotations

#: One row per turn, verdict, eviction or question: too long for a person to read, so not as CSV.
LARGE_TABLES = ("turns", "verdicts", "evictions", "recall")
#: By the rule that writes them.
TABLES_OF_RULE: dict[str, tuple[str, ...]] = {
    "aggregate": (
        *LARGE_TABLES,
        "dialogues",
        "baselines",
        "policies",
        "contrasts",
        "attribution",
        "predictors",
        "window",
        "window_changes",
        "environments",
        "recall_by_depth",
        "verdict_means",
        "missing_verdicts",
        "missing_by_cell",
        "own_replies",
        "prefill_overshoot",
        "not_finite",
    ),
    "claims": ("claims",),
    "judge_reliability": ("reliability", "comparisons", "missing_comparisons", "costs"),
    "report": ("jobs",),
}


def table_endings(table: str) -> tuple[str, ...]:
    """Parquet for programs, and CSV for people."""
    return ("parquet",) if table in LARGE_TABLES else ("parquet", "csv")


def table_files(rule: str) -> list[str]:
    """The files that a rule writes its tables to; `<results>` is the run's folder."""
    return [
        f"<results>/tables/{table}.{ending}"
        for table in TABLES_OF_RULE[rule]
        for ending in table_endings(table)
    ]
