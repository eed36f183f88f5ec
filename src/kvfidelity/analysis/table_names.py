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
        "ranking",
        "leaderboard",
        "contrasts",
        "attribution",
        "predictors",
        "predictor_validation",
        "penalties",
        "window",
        "window_changes",
        "environments",
        "recall_by_depth",
        "healings",
        "finetuning",
        "balance",
        "balance_pairs",
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

#: What a table's rows are.
TABLE_ROWS = {
    "turns": "One row per turn of every run, without its texts.",
    "dialogues": "One row per run.",
    "evictions": "One row per eviction and keep set of every run.",
    "verdicts": "One row per verdict on a run's replies.",
    "policies": "One row per cell: excess NLL, and integrity as the mean over the same turns.",
    "ranking": "One row per cell: cells of one budget in the order of their loss, with what they "
    "save.",
    "leaderboard": "One row per cell: cells of one budget and position mode in the order of what "
    "they forget, with what their evictions cost.",
    "baselines": "One row per model and dataset: whether the model knows anything.",
    "contrasts": "Paired differences in excess NLL between position modes, and between policies "
    "of one budget, in families that are named beforehand.",
    "attribution": "One row per policy and threshold: whether its loss is one of tokens or of "
    "positions, at the same kept tokens.",
    "predictors": "One row per integrity metric: how well it orders turns by their loss.",
    "predictor_validation": "One row per group of cells that is left out and measure: how well it "
    "orders turns by their loss in the group, and without it.",
    "penalties": "Policies with a penalty for disruption, against the same with weight 0.",
    "window": "NLL of the baseline's reference replies by token index.",
    "window_changes": "How the baseline's NLL changes along the trained window.",
    "environments": "One row per set of versions, hardware and code that made a model's runs.",
    "recall": "One row per recall question of every run, without its texts.",
    "recall_by_depth": "One row per cell, origin and depth.",
    "healings": "One row per cell with a healing: what it changes against the same cell without.",
    "finetuning": "One row per cell, arm of a fine-tuned model, measure and arm that it is "
    "compared with.",
    "balance": "One row per cell with a target: its loss and what it forgets of the middle, "
    "against sinks and a recent window.",
    "balance_pairs": "One row per hybrid cell and other cell at the same budget: what it forgets "
    "of the middle, paired.",
    "verdict_means": "One row per judge and cell: replies after an eviction, and the baseline's "
    "of the same turns.",
    "missing_verdicts": "One row per judge, reason and turn.",
    "missing_by_cell": "One row per judge and setting: whether missing verdicts depend on the "
    "cell.",
    "own_replies": "One row per cell: the model's own replies after an eviction, and the "
    "baseline's of the same turns.",
    "prefill_overshoot": "One row per model, policy and threshold.",
    "not_finite": "Measured values that are NaN or infinite. They count as missing in all tables.",
    "claims": "One row per claim and cell that it is about.",
    "reliability": "How far judges can be trusted: one row per measure.",
    "comparisons": "One row per judge that compares and cell: replies after an eviction.",
    "missing_comparisons": "One row per judge that compares and setting: whether missing "
    "comparisons depend on the cell.",
    "costs": "What judging cost.",
    "jobs": "Seconds and memory of the workflow's jobs, by rule.",
}
#: Those that Snakemake's own report holds, in the order of the page.
REPORTED_TABLES = (
    *("ranking", "leaderboard", "attribution", "policies", "claims", "contrasts"),
    "recall_by_depth",
    *("own_replies", "verdict_means", "predictors", "window_changes", "prefill_overshoot"),
    *("baselines", "environments", "reliability", "comparisons", "costs", "jobs"),
)


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
