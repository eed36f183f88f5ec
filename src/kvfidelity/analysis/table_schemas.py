"""The tables' columns, written down.

`python -m kvfidelity.analysis.table_schemas > src/kvfidelity/analysis/tables.yaml` makes tables of
one run without a row and lists what they are made of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.claims import evaluate_claims
from kvfidelity.analysis.jobs import SCHEMA as JOBS
from kvfidelity.analysis.tables import build_tables
from kvfidelity.judges.verdict import SCHEMA as VERDICTS
from kvfidelity.metrics.text import SCHEMA as METRICS
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.columns import EVICTIONS, RECALL, TURNS
from kvfidelity.records.grid import run_keys
from kvfidelity.records.schema_version import SCHEMA_VERSION

RECORDS = {"turns": TURNS | METRICS, "evictions": EVICTIONS, "recall": RECALL, "verdicts": VERDICTS}
SETTINGS: dict[str, Any] = {
    "models": {"none": {}},
    "datasets": {"none": {"count": 1}},
    "policies": {"baseline": {"kind": "baseline"}},
    "thresholds": {"none": {}},
    "grid": dict.fromkeys(("models", "datasets", "policies", "positions", "thresholds"), "all")
    | {"seeds": [0], "include": [], "exclude": []},
    "judging": ["none"],
    "report": {"confidence": 0.95, "resamples": 100, "seed": 0},
}
#: Of columns that no record has, or that mean something else than there; under `table.column` where
#: tables differ.
MEANING = {
    "run": "place of the artifact: model/dataset/policy/positions/threshold/seed/dialogue",
    "baseline_nll": "reference_nll of the never evicted run on the same turn, nats per token",
    "excess_nll": "reference_nll minus baseline_nll, nats per token",
    "dialogues.excess_nll": "token-weighted mean over turns after an eviction, inside the window",
    "after_eviction": "an eviction has happened in this run before or in this turn",
    "recall.after_eviction": "an eviction had happened when the question was asked",
    "inside_window": "the never evicted run is within its trained window at the end of the turn",
    "prefill_overshoot_share": "share of the threshold by which the prompt alone passed it",
    "dialogues.prefill_overshoot_share": "the largest of the run",
    "dialogues.turns": "turns of the run",
    "dialogues.turns_after_eviction": "those that excess_nll is over",
    "dialogues.tokens_seen": "tokens fed until the end",
    "dialogues.evictions": "sum over the run",
    "dialogues.out_of_memory": "turns that ended so",
    "mean": "estimate: token-weighted mean of excess_nll, nats per token",
    "contrasts.mean": "estimate: first minus second, excess_nll on the same dialogue and turn",
    "low": "lower end of the interval that resamples dialogues; missing with one dialogue",
    "predictors.low": "likewise; missing also if over a tenth of the resamples leave it undefined",
    "high": "upper end",
    "p": "Wilcoxon's signed-rank over dialogues' means, two-sided, against 0",
    "effect": "matched-pairs rank-biserial correlation of the same, -1 to 1",
    "p_holm": "p by Holm over the whole table",
    "n_dialogues": "dialogues that the estimate is over",
    "n_turns": "turns that the estimate is over",
    "claims.n_turns": "turns, or questions, that the estimate is over",
    "n_tokens": "reference tokens of those turns",
    "budget_tokens": "cached tokens an eviction leaves; missing if policies set their own size",
    "cache_bytes": "mean bytes of the cache once the prompt was read",
    "kl_baseline": "token-weighted mean",
    "environments.hardware": "name of the GPU, or the CPU's architecture",
    "environments.dtype": "of weights and cache",
    "environments.code": "digest of the source files that a run depends on",
    "environments.versions": "of Python and of the packages that compute",
    "environments.runs": "runs made in this environment",
    "factor": "what differs: positions or policy",
    "first": "value of the factor that is subtracted from",
    "second": "value of the factor that is subtracted",
    "metric": "column of turns that is correlated with excess_nll",
    "correlation": "Spearman's, over turns after an eviction and inside the window",
    "gap_to_best": "by how much the strongest metric's correlation is stronger, signs aside",
    "start": "first token index of the stretch",
    "stop": "token index behind the stretch",
    "nll": "mean NLL of reference tokens in it, nats per token",
    "tokens": "reference tokens in it",
    "chance": "share of such questions that guessing answers",
    "recalled": "1 if the answer was likelier than every distractor, else 0",
    "recall_by_depth.origin": "planted, or dataset: questions that the data set carries",
    "recall_by_depth.depth": "where in the dialogue it was said: gist, middle, recent, unknown",
    "recall_by_depth.recalled": "share of questions with an answer likelier than every distractor",
    "recall_lost": "the never evicted run's recalled minus this one's",
    "margin_lost": "the never evicted run's margin minus this one's, nats per token",
    "recall_by_depth.answered": "share whose reply in the model's own words holds the answer",
    "recall_by_depth.margin": "mean nats per token by which the answer leads the best distractor",
    "recall_by_depth.recall_lost": "mean, paired by question",
    "recall_by_depth.margin_lost": "mean, paired by question",
    "recall_by_depth.p": "as in contrasts, of margin_lost",
    "recall_by_depth.effect": "as in contrasts, of margin_lost",
    "recall_by_depth.evidence_retained_share": "mean",
    "recalled_baseline": "the never evicted run's share of the same questions",
    "changed": "questions right in one of the two and wrong in the other",
    "n_questions": "questions asked after an eviction; of the never evicted run, all",
    "claim": "name in the claims file",
    "statement": "the statement",
    "source": "who makes it",
    "against": "the cell that is subtracted",
    "against_budget_tokens": "its budget",
    "direction": "above, below or within",
    "margin": "how far beyond 0 the interval has to lie",
    "decision": "supported, contradicted or not decided",
    "estimate": "of the claim's quantity",
    "reason": "reason of the verdict",
    "not_finite.table": "table of what was measured",
    "not_finite.column": "its column with values that are NaN or infinite: missing in all tables",
    "not_finite.runs": "runs that have such values",
    "not_finite.values": "how many there are",
    "rule": "of the workflow",
    "measured": "job: by Snakemake, in the job's processes; worker: by the process that ran it",
    "jobs": "how many were measured",
    "jobs_shared": "those of a process that may run several at once: seconds are of all",
    "wall_s_median": "of a job",
    "wall_s_max": "of a job",
    "wall_s": "sum over jobs",
    "cpu_s": "sum over jobs of half a second or more; missing if there is none",
    "peak_rss_mb": "largest resident memory of a job, or of its worker since that started",
}
INTERVAL_ENDS = {"_low": "lower end of its interval", "_high": "upper end of its interval"}


def empty_tables() -> dict[str, pl.DataFrame]:
    """All tables, as one run without a row gives them."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        for key in run_keys(SETTINGS):
            for kind, columns in (("turns", TURNS), ("evictions", EVICTIONS), ("recall", RECALL)):
                file = results / "generate" / key / f"{kind}.parquet"
                write_parquet(pl.DataFrame(schema=columns), file, kind=kind)
            for folder, kind, columns in (
                ("metrics", "metrics", {"turn": pl.Int32} | METRICS),
                ("judge/none", "verdicts", VERDICTS),
            ):
                file = results / folder / key / f"{kind}.parquet"
                write_parquet(pl.DataFrame(schema=columns), file, kind=kind)
        tables = build_tables(SETTINGS, results)
    claims = evaluate_claims([], tables, SETTINGS["report"])
    return tables | {"claims": claims, "jobs": pl.DataFrame(schema=JOBS)}


def column_meaning(table: str, column: str) -> str | None:
    """What a column holds; None if records.yaml has it, where its name tells."""
    found = MEANING.get(f"{table}.{column}")
    if found is None and column not in RECORDS.get(table, {}):
        found = MEANING.get(column)
    suffix = next((suffix for suffix in INTERVAL_ENDS if column.endswith(suffix)), None)
    return INTERVAL_ENDS[suffix] if found is None and suffix else found


def table_schemas(tables: Mapping[str, pl.DataFrame]) -> str:
    """Columns, types and meanings, as YAML."""
    lines = [
        "# Made by `python -m kvfidelity.analysis.table_schemas`. Columns without a remark are "
        "those of",
        "# records.yaml, or text metrics (metrics/text.py); integrity (metrics/integrity.py) is in",
        "# policies the mean over the same turns as the estimate.",
        f"schema_version: {SCHEMA_VERSION}",
    ]
    for name, table in tables.items():
        lines.append(f"{name}:")
        for column, dtype in table.schema.items():
            meaning = column_meaning(name, column)
            lines.append(f'  {column}: "{dtype}"' + (f"  # {meaning}" if meaning else ""))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table_schemas(empty_tables()), end="")
