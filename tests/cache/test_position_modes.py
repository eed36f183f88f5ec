"""A position mode is declared in two files, what it does and how it is shown; all else follows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvfidelity.cache.positions import PositionMode

ROOT = Path(__file__).parents[2]
FROZEN_MEMBER = '    FROZEN = "frozen"\n'
FROZEN_TRAITS = """
    PositionMode.FROZEN: ModeTraits(
        next_position=lambda slots, tokens_seen, evicted: tokens_seen + 100,
        renumbers=False,
    ),
"""
FROZEN_LOOK = """
    PositionMode.FROZEN: Presentation(
        meaning="survivors keep their position, the next position skips a hundred",
        colour="#CC79A7",
        marker="cross",
    ),
"""
#: File, line, and what follows it: adding a mode touches at most three files.
ADDITIONS = (
    ("cache/positions.py", '    STALE = "stale"\n', FROZEN_MEMBER),
    ("cache/positions.py", "_TRAITS = {\n", FROZEN_TRAITS),
    ("report/position_modes.py", "_PRESENTATIONS = {\n", FROZEN_LOOK),
)
USES = """
import torch, yaml
from pathlib import Path
from kvfidelity.analysis.claims import read_claims
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.pipeline.settings import load_settings
from kvfidelity.records.grid import cells
from kvfidelity.report.figures import MODE_COLOURS, MODE_SHAPES

config = yaml.safe_load(Path("config.yaml").read_text())
config["grid"] = {"positions": ["frozen"], "policies": ["gist"]}
settings = load_settings(config)
assert "frozen" in {cell.positions for cell in cells(settings)}
config["grid"]["positions"] = "all"
assert "frozen" in {cell.positions for cell in cells(load_settings(config))}

claims = yaml.safe_load(Path("claims.yaml").read_text())
name, claim = next(iter(claims.items()))
claim["of"] = {"positions": "frozen"}
Path("claims.yaml").write_text(yaml.safe_dump({name: claim}))
assert read_claims(Path("claims.yaml"))[0].of == {"positions": "frozen"}

for scale, look in ((MODE_COLOURS, "#CC79A7"), (MODE_SHAPES, "cross")):
    shown = dict(zip(scale.domain, scale.range, strict=True))
    assert shown["frozen"] == look and len(set(shown.values())) == len(shown)

slots = SlotTable(PositionMode("frozen"))
slots.append(4)
slots.keep(torch.tensor([0, 3]))
slots.append(1)
assert slots.position[0, 0].tolist() == [100, 103, 104]
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A folder with a copy of the library that has one more mode, and with the project's config."""
    library = shutil.copytree(ROOT / "src/kvfidelity", tmp_path / "src/kvfidelity")
    assert len({name for name, *_ in ADDITIONS}) <= 3
    for name, line, addition in ADDITIONS:
        file = library / name
        text = file.read_text(encoding="utf-8")
        assert text.count(line) == 1
        file.write_text(text.replace(line, line + addition), encoding="utf-8")
    for name in ("config.yaml", "claims.yaml"):
        shutil.copy(ROOT / "config" / name, tmp_path)
    return tmp_path


def run_in(workdir: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workdir,
        env={"PYTHONPATH": str(workdir / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_settings_grid_claims_figures_and_slots_know_a_fourth_mode(workdir: Path) -> None:
    run_in(workdir, USES)


def test_the_snakefile_accepts_a_fourth_mode_as_a_wildcard(workdir: Path) -> None:
    [constraint] = re.findall(r"^ +positions=(.*),$", (ROOT / "Snakefile").read_text(), re.M)
    declared = "from kvfidelity.cache.positions import PositionMode"
    run_in(workdir, f"{declared}; assert 'frozen' in ({constraint}).split('|')")


def test_no_other_place_lists_the_modes() -> None:
    """One mode may be named where it alone is meant; a list of them all is read from the enum."""
    files = [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.*"), *(ROOT / "src").rglob("*.*")]
    files += [*(ROOT / "benchmarks").glob("*.py")]
    listed = re.compile(r"\b{}\b\W{{1,6}}\b{}\b\W{{1,6}}\b{}\b".format(*PositionMode))
    found = [
        str(file.relative_to(ROOT))
        for file in files
        if file.suffix not in (".pyc", ".svg") and listed.search(file.read_text(encoding="utf-8"))
    ]
    assert found == []
