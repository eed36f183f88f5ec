"""notebooks/quickstart.ipynb runs from top to bottom, on random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"
NAMES = ("label", "difference", "next_position", "kl")
RUN = f"""
import json, sys
names = {{"__name__": "__main__"}}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
found = {{name: names[name] for name in {NAMES}}}
found["kept"] = [eviction.slots_after for eviction in names["evictor"].log]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code cells computed, run in order in another process without the default model."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK)],
        cwd=tmp_path_factory.mktemp("notebook"),
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_without_an_eviction_the_logits_are_hugging_faces(found: dict[str, Any]) -> None:
    assert found["label"] == "random weights"
    assert found["difference"] < 1e-4


def test_position_modes_part_after_an_eviction(found: dict[str, Any]) -> None:
    assert found["next_position"] == {"stale": 64, "original": 199, "rerotated": 64}
    assert len(set(found["kl"].values())) == 3
    assert min(found["kl"].values()) > 0


def test_the_policy_evicts_inside_generate(found: dict[str, Any]) -> None:
    assert len(found["kept"]) >= 3
    assert set(found["kept"]) == {32}


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
