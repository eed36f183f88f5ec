"""The smallest grids that a configuration can ask for end in a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.project import Project


@pytest.mark.long(60)
def test_one_dialogue_one_policy_one_position_mode_and_then_no_policy(
    prepared: Project, tmp_path: Path
) -> None:
    project = prepared.copy(tmp_path / "project")
    grid = {"policies": ["baseline", "streaming"], "positions": ["stale"]}
    project.configure({"grid": grid, "session": {"recall": {"needles_per_depth": 2}}})
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    page = (project.folder / "results/report.html").read_text(encoding="utf-8")
    assert "What each policy forgets" in page
    assert "No policy of this run evicts anything" not in page

    project.reconfigure({"grid": {"policies": ["baseline"]}})
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    page = (project.folder / "results/report.html").read_text(encoding="utf-8")
    assert "No policy of this run evicts anything" in page
    drawn = (project.folder / "results/figures/retention.svg").read_text(encoding="utf-8")
    assert "Nothing to draw" in drawn
