"""Snakemake's own report of a finished run."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from kvfidelity.analysis.table_names import REPORTED_TABLES, TABLE_ROWS
from kvfidelity.report.figure_registry import FIGURES
from tests.workflow.project import ROOT, Project


def test_it_holds_figures_and_tables_with_labels_and_captions(
    finished: Project, tmp_path: Path
) -> None:
    file = tmp_path / "archive.zip"
    done = finished.snakemake("--report", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(file) as archive:
        names = {Path(name).name for name in archive.namelist()}
        page = archive.read("archive/report.html").decode()
    expected = {f"{figure.name}.svg" for figure in FIGURES}
    expected |= {f"{name}.csv" for name in REPORTED_TABLES}
    assert expected | {"report.html"} <= names
    for caption in (ROOT / "workflow/report").glob("*.rst"):
        assert " ".join(caption.read_text().split())[:60] in page, caption.name
    for name in REPORTED_TABLES:
        assert TABLE_ROWS[name][:40] in page, name
    items = set(re.findall(r'"item": ?"([^"]+)"', page))
    assert items >= {f"figure {figure.name}" for figure in FIGURES}
    assert items >= {f"table {name}" for name in REPORTED_TABLES}
    assert len(items) == len(FIGURES) + len(REPORTED_TABLES) + 2  # the page, the lengths
