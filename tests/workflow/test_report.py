"""Snakemake's own report of a finished run."""

from __future__ import annotations

import zipfile
from pathlib import Path

from kvfidelity.report.figure_registry import FIGURES
from tests.workflow.project import ROOT, Project


def test_it_holds_every_figure_with_its_caption(finished: Project, tmp_path: Path) -> None:
    file = tmp_path / "archive.zip"
    done = finished.snakemake("--report", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(file) as archive:
        names = {Path(name).name for name in archive.namelist()}
        page = archive.read("archive/report.html").decode()
    assert {f"{figure.name}.svg" for figure in FIGURES} | {"report.html", "claims.csv"} <= names
    for caption in (ROOT / "workflow/report").glob("*.rst"):
        assert " ".join(caption.read_text().split())[:60] in page, caption.name
