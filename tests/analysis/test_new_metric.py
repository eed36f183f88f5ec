"""A new integrity metric touches two files; tables, docs and page follow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
#: File below src/kvfidelity, what is looked for, and what stands there instead.
EDITS = (
    (
        "metrics/positions.py",
        "    sinks_kept: float\n",
        "    sinks_kept: float\n    widest_gap: float = 7.5\n",
    ),
    (
        "records/columns.py",
        "    sinks_kept: ",
        '    widest_gap: Annotated[Dtype, "tokens", "longest evicted stretch"] = pl.Float64\n'
        "    sinks_kept: ",
    ),
)
USE = """
import sys
from dataclasses import MISSING, fields
from pathlib import Path
import polars as pl
from kvfidelity.analysis.results_docs import results_docs
from kvfidelity.analysis.tables import build_tables
from kvfidelity.metrics.positions import Integrity
from kvfidelity.records.columns import TURNS
from kvfidelity.records.frames import integrity_values
from tests.analysis import synthetic
from tests.analysis.pages import page

folder = Path(sys.argv[1])
known = [field for field in fields(Integrity) if field.default is MISSING]
measured = Integrity(*[0.5] * len(known))
value = integrity_values(measured, ())["widest_gap"]
rows = synthetic.turn_rows
synthetic.turn_rows = lambda *args: rows(*args).with_columns(widest_gap=pl.lit(value))
chosen = synthetic.settings(2)
synthetic.write(folder / "results", chosen, {}, turns=8)
tables = build_tables(chosen, folder / "results")
assert tables["turns"]["widest_gap"].unique().to_list() == [7.5]
assert tables["policies"]["widest_gap"].unique().to_list() == [7.5]
assert "| `widest_gap` | Float64 | tokens | generate | longest evicted stretch |" in results_docs()
text = page(folder, chosen, tested=False)
section = text[text.index('id="positions"') : text.index('id="window"')]
assert "widest gap</th>" in section and ">7.50</td>" in section
assert "longest evicted stretch" in text[text.index('id="glossary"') :]
"""


def test_an_integrity_metric_in_two_files_is_in_tables_docs_and_page(tmp_path: Path) -> None:
    library = tmp_path / "src/kvfidelity"
    for name in ("src", "tests", "workflow", "config"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in EDITS:
        text = (library / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, name
        (library / name).write_text(text.replace(before, after), encoding="utf-8")
    paths = f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "made")],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
