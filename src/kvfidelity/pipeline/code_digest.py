"""A digest of the code that a stage's artifacts depend on.

Snakemake does not see imported modules. So each rule carries its stage's digest in its parameters:
a change in what matters reruns the stage, a change elsewhere does not.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from kvfidelity.records.schema_version import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[3]
#: Files and folders by stage, relative to the checkout. Docstrings count: telling code from
#: comment is not worth a second mechanism.
STAGES: dict[str, tuple[str, ...]] = {
    "model": (
        "workflow/scripts/fetch_model.py",
        "src/kvfidelity/models/fetch.py",
        "src/kvfidelity/models/convert.py",
        "src/kvfidelity/models/gguf_tokenizer.py",
        "src/kvfidelity/models/checksums.py",
    ),
    "dataset": ("workflow/scripts/fetch_dataset.py", "src/kvfidelity/dialogues/fetch.py"),
    "dialogues": (
        "workflow/scripts/extract_dialogues.py",
        "src/kvfidelity/dialogues/cleaning.py",
        "src/kvfidelity/dialogues/content.py",
        "src/kvfidelity/dialogues/duplicates.py",
        "src/kvfidelity/dialogues/extract.py",
        "src/kvfidelity/dialogues/join.py",
        "src/kvfidelity/dialogues/pool.py",
        "src/kvfidelity/dialogues/segments.py",
        "src/kvfidelity/dialogues/selection.py",
        "src/kvfidelity/dialogues/formats",
    ),
    "lengths": ("workflow/scripts/lengths.py", "src/kvfidelity/dialogues/lengths.py"),
    "generate": (
        "src/kvfidelity/cache",
        "src/kvfidelity/dialogues/needle_facts.py",
        "src/kvfidelity/dialogues/needles.py",
        "src/kvfidelity/dialogues/segments.py",
        "src/kvfidelity/metrics/positions.py",
        "src/kvfidelity/metrics/likelihood.py",
        "src/kvfidelity/models/load.py",
        "src/kvfidelity/decoding",
        "src/kvfidelity/generation",
        "src/kvfidelity/prefix",
        "src/kvfidelity/records/columns.py",
        "src/kvfidelity/records/frames.py",
        "src/kvfidelity/sizes.py",
        "src/kvfidelity/worker/job.py",
    ),
    "measure": ("workflow/scripts/measure.py", "src/kvfidelity/metrics/text.py"),
    "judge": (
        "workflow/scripts/request_judge_batch.py",
        "workflow/scripts/compare_replies.py",
        "workflow/scripts/judge.py",
        "src/kvfidelity/judges",
    ),
    "corrupt_replies": (
        "workflow/scripts/corrupt_replies.py",
        "src/kvfidelity/judges/corruptions.py",
    ),
    "test_judge": (
        "workflow/scripts/compare_replies.py",
        "workflow/scripts/test_judge.py",
        "src/kvfidelity/judges",
        "src/kvfidelity/metrics/text.py",
    ),
    "judge_reliability": (
        "workflow/scripts/judge_reliability.py",
        "src/kvfidelity/analysis/comparisons.py",
        "src/kvfidelity/analysis/finite.py",
        "src/kvfidelity/analysis/reliability.py",
        "src/kvfidelity/analysis/statistics.py",
        "src/kvfidelity/analysis/table_files.py",
        "src/kvfidelity/judges/pairwise.py",
        "src/kvfidelity/judges/corruptions.py",
        "src/kvfidelity/judges/verdict.py",
    ),
    "merge": ("workflow/scripts/merge.py", "src/kvfidelity/pipeline/merge.py"),
    "aggregate": (
        "workflow/scripts/aggregate.py",
        "src/kvfidelity/analysis/environments.py",
        "src/kvfidelity/analysis/finite.py",
        "src/kvfidelity/analysis/columns.py",
        "src/kvfidelity/analysis/overshoot.py",
        "src/kvfidelity/analysis/own_replies.py",
        "src/kvfidelity/analysis/predictors.py",
        "src/kvfidelity/analysis/recall.py",
        "src/kvfidelity/analysis/statistics.py",
        "src/kvfidelity/analysis/table_files.py",
        "src/kvfidelity/analysis/tables.py",
        "src/kvfidelity/analysis/verdicts.py",
        "src/kvfidelity/analysis/window.py",
    ),
    "claims": (
        "workflow/scripts/claims.py",
        "src/kvfidelity/analysis/claims.py",
        "src/kvfidelity/analysis/finite.py",
        "src/kvfidelity/analysis/statistics.py",
        "src/kvfidelity/analysis/table_files.py",
    ),
    "paper_tables": (
        "workflow/scripts/paper_tables.py",
        "src/kvfidelity/report/paper_tables.py",
        "src/kvfidelity/report/formatting.py",
    ),
    "report": (
        "workflow/scripts/figures.py",
        "workflow/scripts/report.py",
        "src/kvfidelity/analysis",
        "src/kvfidelity/report",
    ),
}
#: Stages that write no artifact of their own: a new schema version does not rerun them.
WITHOUT_ARTIFACTS = frozenset({"model", "dataset", "lengths", "paper_tables"})


@cache
def stage_digest(stage: str) -> str:
    """SHA-256 over the stage's source files, and over the schema version if it writes artifacts.

    12 hex digits; the files are read once in a process.
    """
    hasher = hashlib.sha256()
    if stage not in WITHOUT_ARTIFACTS:
        hasher.update(f"schema version {SCHEMA_VERSION}\0".encode())
    for entry in STAGES[stage]:
        path = ROOT / entry
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in {".py", ".j2", ".css", ".js"}:
                hasher.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return hasher.hexdigest()[:12]
