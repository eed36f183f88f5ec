"""A judge kind and a dialogue format from files next to the configuration, in a small grid."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tests.dialogues.formats.test_files import OWN_FORMAT
from tests.judges.own_kind import WORDS_JUDGE
from tests.workflow.project import Project


@pytest.mark.long(60)
def test_own_files_add_a_judge_and_a_format_whose_results_are_in_tables_and_page(
    prepared: Project, tmp_path: Path
) -> None:
    """One dialogue, one policy, one position mode."""
    project = prepared.copy(tmp_path / "project")
    (project.folder / "my_judge.py").write_text(WORDS_JUDGE)
    (project.folder / "my_format.py").write_text(OWN_FORMAT)
    texts = [f"This is message number {n} of a short dialogue." for n in range(12)]
    records = [{"name": "piped", "log": "|".join(texts)}]
    (project.folder / "piped.json").write_text(json.dumps(records))
    dataset = {"source": "path", "path": "piped.json", "format": "piped", "count": 1}
    project.configure(
        {
            "format_files": ["my_format.py"],
            "datasets": {"own": dataset},
            "thresholds": {"small": {"at": "60tok", "target": "30tok"}},
            "judge_files": ["my_judge.py"],
            "judges": {"mine": {"kind": "words", "rubric": "blind", "words_per_point": 3}},
            "judging": ["mine"],
            "reliability": {"replies": 2},
            "session": {"recall": {"needles_per_depth": 2}},
            "grid": {"policies": ["baseline", "random"], "positions": ["stale"]},
        }
    )
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    tables = project.folder / "results/tables"
    verdicts = pl.read_parquet(tables / "verdicts.parquet")
    assert set(verdicts["judge"]) == {"mine"}
    turns = pl.read_parquet(tables / "turns.parquet")
    assert set(turns["dataset"]) == {"own"} and set(turns["policy"]) == {"baseline", "random"}
    page = (project.folder / "results/report.html").read_text(encoding="utf-8")
    assert "What each policy forgets" in page
    assert project.planned() == set()

    judge = project.folder / "my_judge.py"
    text = judge.read_text()
    judge.write_text(text.replace("1 + words", "2 + words"))
    rules = {rule for rule, _ in project.planned()}
    assert {"judge", "test_judge"} <= rules
    assert not {"generate", "extract_dialogues", "measure"} & rules
