"""Reads what is published in `docs/findings/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.findings.exported import EXPORTED, exported_schema
from kvfidelity.findings.plan import FINDINGS, MODELS, Finding

DOCS = Path("docs/findings")
FACTS = "run.json"
#: The facts of a second run that a published one was compared with.
AGAIN = "repetition.json"
#: What a reader calls a model of the findings.
MODEL_NAMES = {"smollm2-135m": "SmolLM2-135M", "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B"}


@dataclass(frozen=True)
class PublishedRun:
    """One finding with one model. A table that the run has no rows of is empty.

    `repetition` are the facts of a second run, if there was one; its comparison with this one is in
    table `repetition`.
    """

    finding: Finding
    model: str
    facts: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]
    folder: Path
    repetition: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What a reader calls the model, with what must be known of the run first."""
        label = f" ({self.facts['label']})" if self.facts["label"] else ""
        return MODEL_NAMES.get(self.model, self.model) + label


def published_runs(docs: Path = DOCS) -> list[PublishedRun]:
    """All published runs, in the order of the findings and of their models."""
    runs = []
    for finding in FINDINGS:
        below = docs / finding.name
        folders = [path for path in below.glob("*") if (path / FACTS).is_file()]
        for folder in sorted(folders, key=lambda path: _place(path.name)):
            facts = json.loads((folder / FACTS).read_text("utf-8"))
            tables = {name: _table(folder, name) for name in EXPORTED}
            file = folder / AGAIN
            again = json.loads(file.read_text("utf-8")) if file.is_file() else None
            runs.append(PublishedRun(finding, folder.name, facts, tables, folder, again))
    return runs


def of_question(runs: list[PublishedRun], question: str, table: str = "") -> list[PublishedRun]:
    """The runs of a question; with `table`, those that have rows in it."""
    return [
        run
        for run in runs
        if run.finding.question == question and (not table or run.tables[table].height)
    ]


def _place(model: str) -> tuple[int, str]:
    return (MODELS.index(model) if model in MODELS else len(MODELS)), model


def _table(folder: Path, name: str) -> pl.DataFrame:
    file = folder / f"{name}.parquet"
    schema = exported_schema(name)
    if not file.is_file():
        return pl.DataFrame(schema=schema)
    table = pl.read_parquet(file, glob=False)
    # Tables of an earlier version lack columns that came later: they are missing in every row.
    later = [pl.lit(None, dtype).alias(key) for key, dtype in schema.items() if key not in table]
    return table.with_columns(later).select(*schema)
