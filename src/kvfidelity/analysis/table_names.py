"""Names of the tables that rules aggregate and paper_tables write; the Snakefile reads them."""

#: Whole records, as Parquet only: they are large.
RECORDS = ("turns", "verdicts", "evictions", "recall")
#: Tables that people read, as CSV too.
SUMMARIES = (
    "dialogues",
    "policies",
    "contrasts",
    "predictors",
    "window",
    "window_changes",
    "environments",
    "recall_by_depth",
    "verdict_means",
    "missing_verdicts",
    "own_replies",
    "prefill_overshoot",
    "not_finite",
)
#: Tables for papers, as Markdown and LaTeX too; how they are laid out is in `report.paper_tables`.
FOR_PAPERS = (
    "claims",
    "policies",
    "contrasts",
    "recall_by_depth",
    "verdict_means",
    "own_replies",
    "window_changes",
    "prefill_overshoot",
)
