"""A digest of the code that a stage's artifacts depend on.

Snakemake does not see imported modules. So each rule carries its stage's digest in its parameters:
a change in what matters reruns the stage, a change elsewhere does not.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from kvfidelity.schema_version import SCHEMA_VERSION

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = PACKAGE.parent
#: Files and folders by stage, relative to the scripts folder. Docstrings count: telling code from
#: comment is not worth a second mechanism.
STAGES: dict[str, tuple[str, ...]] = {
    "model": (
        "fetch_model.py",
        "kvfidelity/models/acquire.py",
        "kvfidelity/models/convert.py",
        "kvfidelity/models/gguf_tokenizer.py",
        "kvfidelity/models/integrity.py",
    ),
    "dataset": ("fetch_dataset.py", "kvfidelity/dialogues/acquire.py"),
    "dialogues": (
        "extract_dialogues.py",
        "kvfidelity/dialogues/cleaning.py",
        "kvfidelity/dialogues/content.py",
        "kvfidelity/dialogues/duplicates.py",
        "kvfidelity/dialogues/extract.py",
        "kvfidelity/dialogues/join.py",
        "kvfidelity/dialogues/pool.py",
        "kvfidelity/dialogues/segments.py",
        "kvfidelity/dialogues/selection.py",
        "kvfidelity/dialogues/sources",
    ),
    "lengths": ("lengths.py", "kvfidelity/dialogues/lengths.py"),
    "generate": (
        "kvfidelity/cache",
        "kvfidelity/dialogues/facts.py",
        "kvfidelity/dialogues/probes.py",
        "kvfidelity/dialogues/segments.py",
        "kvfidelity/metrics/integrity.py",
        "kvfidelity/metrics/quality.py",
        "kvfidelity/models/load.py",
        "kvfidelity/session",
        "kvfidelity/sizes.py",
        "kvfidelity/worker/job.py",
    ),
    "measure": ("measure.py", "kvfidelity/metrics/text.py"),
    "judge": ("ask_in_batch.py", "compare_replies.py", "judge.py", "kvfidelity/judge"),
    "plant": ("plant.py", "kvfidelity/judge/planting.py"),
    "trial": ("compare_replies.py", "trial.py", "kvfidelity/judge", "kvfidelity/metrics/text.py"),
    "appraise": (
        "appraise.py",
        "kvfidelity/analysis/comparisons.py",
        "kvfidelity/analysis/finite.py",
        "kvfidelity/analysis/reliability.py",
        "kvfidelity/analysis/statistics.py",
        "kvfidelity/analysis/table_files.py",
        "kvfidelity/judge/pairwise.py",
        "kvfidelity/judge/planting.py",
        "kvfidelity/judge/verdict.py",
    ),
    "merge": ("merge.py", "kvfidelity/merge.py"),
    "aggregate": (
        "aggregate.py",
        "kvfidelity/analysis/environments.py",
        "kvfidelity/analysis/finite.py",
        "kvfidelity/analysis/prediction.py",
        "kvfidelity/analysis/recall.py",
        "kvfidelity/analysis/statistics.py",
        "kvfidelity/analysis/table_files.py",
        "kvfidelity/analysis/tables.py",
        "kvfidelity/analysis/window.py",
    ),
    "claims": (
        "claims.py",
        "kvfidelity/analysis/claims.py",
        "kvfidelity/analysis/finite.py",
        "kvfidelity/analysis/paper_tables.py",
        "kvfidelity/analysis/table_files.py",
        "kvfidelity/analysis/words.py",
    ),
    "report": ("figures.py", "report.py", "kvfidelity/analysis"),
}
#: Stages that write no artifact of their own: a new schema version does not rerun them.
WITHOUT_ARTIFACTS = frozenset({"model", "dataset", "lengths"})


@cache
def stage_fingerprint(stage: str) -> str:
    """SHA-256 over the stage's source files, and over the schema version if it writes artifacts.

    12 hex digits; the files are read once in a process.
    """
    digest = hashlib.sha256()
    if stage not in WITHOUT_ARTIFACTS:
        digest.update(f"schema version {SCHEMA_VERSION}\0".encode())
    for entry in STAGES[stage]:
        place = SCRIPTS / entry
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.suffix in {".py", ".j2", ".css", ".js"}:
                digest.update(str(file.relative_to(SCRIPTS)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
