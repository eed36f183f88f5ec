"""A new figure touches two files; the workflow's outputs, the files and the page follow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
FUNCTION = '''

def turn_count(turns: pl.DataFrame) -> alt.TopLevelMixin:
    """How many turns there are."""
    return nothing(f"{turns.height} turns")
'''
ENTRY = """FIGURES = (
    Figure(
        "turn_count",
        function="figures.turn_count",
        tables=("turns",),
        section="cost",
        category="Cost",
        alt_text="How many turns",
        caption="Turns of all runs.",
    ),
"""
USE = """
from pathlib import Path
import sys
from kvfidelity.report.figure_registry import charts
from kvfidelity.report.page_figures import figures_by_section
from kvfidelity.report.theme import save_for_page
from tests.analysis.empty import empty_tables
folder = Path(sys.argv[1])
for name, chart in charts(empty_tables()).items():
    save_for_page(chart, folder, name)
sections = figures_by_section(folder, {"confidence": 0.95, "resamples": 100})
[figure] = [one for one in sections["cost"] if one["alt_text"] == "How many turns"]
assert "0 turns" in figure["svg"] and figure["caption"] == "Turns of all runs."
"""


def run(folder: Path, *command: str) -> str:
    paths = f"{folder / 'src'}{os.pathsep}{folder}"
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_figure_in_two_files_is_planned_drawn_and_shown(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests", "workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("resources/rubrics", "resources/dialogues"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    registry, drawing = (
        tmp_path / "src/kvfidelity/report" / name for name in ("figure_registry.py", "figures.py")
    )
    registry.write_text(registry.read_text("utf-8").replace("FIGURES = (\n", ENTRY), "utf-8")
    drawing.write_text(drawing.read_text("utf-8") + FUNCTION, "utf-8")
    plan = run(tmp_path, "-m", "snakemake", "-n", "--verbose", "--cores", "1")
    for ending in ("svg", "narrow.svg", "png", "html", "csv"):
        assert f"results/figures/turn_count.{ending}" in plan
    run(tmp_path, "-c", USE, str(tmp_path))
