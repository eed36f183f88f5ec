"""The recipes of docs/extending.md, done as a reader does them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kvfidelity import build_policy
from kvfidelity.pipeline.settings import load_settings
from tests.workflow.project import CONFIG

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def write_files(folder: Path, *names: str) -> None:
    """Write the code blocks that begin with a comment of these names."""
    for name in names:
        [code] = [code for code in blocks("python") if code.startswith(f"# {name}\n")]
        (folder / name).write_text(code, encoding="utf-8")


def run_test(folder: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_policy(tmp_path: Path) -> None:
    write_files(tmp_path, "my_policy.py", "my_funnel.py", "test_my_policy.py")
    run_test(tmp_path, "test_my_policy.py")


def test_the_config_of_the_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "my_policy.py", "my_funnel.py")
    monkeypatch.chdir(tmp_path)
    [entry] = [code for code in blocks("yaml") if "policy_files" in code]
    config = yaml.safe_load(entry)
    files = [Path(name) for name in config["policy_files"]]
    for parameters in config["policies"].values():
        kind = parameters.pop("kind")
        assert build_policy(kind, parameters, files).kind == kind


def changed_library(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """A copy of the library. Each change names a file, a line, and the block that follows it."""
    library = folder / "src"
    shutil.copytree(ROOT / "src/kvfidelity", library / "kvfidelity")
    for name, line, label in changes:
        [code] = [code for code in blocks("python") if code.startswith(f"# {label}\n")]
        file = library / "kvfidelity" / name
        text = file.read_text(encoding="utf-8")
        assert text.count(line) == 1, line
        file.write_text(text.replace(line, line + code.split("\n", 1)[1]), encoding="utf-8")
    return library


def run_code(library: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=library,
        env=os.environ | {"PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


USES_OF_THE_MODE = """
import torch
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.pipeline.setting_schemas import config_schema
slots = SlotTable(PositionMode("gap"))
slots.append(8)
slots.keep(torch.tensor([0, 7]))
assert (slots.position.flatten().tolist(), slots.next_position) == ([0, 7], 108)
assert "`gap`: survivors keep" in str(config_schema())
"""


def test_a_position_mode(tmp_path: Path) -> None:
    file = "cache/positions.py"
    library = changed_library(
        tmp_path,
        (file, '    STALE = "stale"\n', "member of PositionMode"),
        (file, "_TRAITS = {\n", "entry of _TRAITS"),
        ("report/position_modes.py", "_PRESENTATIONS = {\n", "entry of _PRESENTATIONS"),
    )
    run_code(library, USES_OF_THE_MODE)


USES_OF_THE_METRIC = """
import torch
from kvfidelity.analysis.results_docs import results_docs
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics.positions import integrity
from kvfidelity.records.columns import INTEGRITY, TURNS
slots = SlotTable(PositionMode.STALE)
slots.append(8)
slots.keep(torch.tensor([0, 1, 5, 6, 7]))
assert integrity(slots, torch.tensor([1.0]), 8).largest_offset_error == 3
assert "largest_offset_error" in INTEGRITY and "largest_offset_error" in TURNS
assert results_docs().count("`largest_offset_error`") >= 3  # turns, and two tables
"""


def test_a_metric_of_positions(tmp_path: Path) -> None:
    computed = '        "sinks_kept": (token < SINKS).sum(-1),\n'
    library = changed_library(
        tmp_path,
        ("metrics/positions.py", "    sinks_kept: float\n", "field of Integrity"),
        ("metrics/positions.py", computed, "entry of means in integrity()"),
        (
            "records/columns.py",
            '    mean_offset_error: Annotated[\n        Dtype, "positions", "mean distance between '
            'the offset RoPE encodes and the true offset"\n    ] = pl.Float64\n',
            "column of Integrity",
        ),
    )
    run_code(library, USES_OF_THE_METRIC)


@pytest.mark.parametrize("kind", ["judge", "format"])
def test_a_judge_and_a_format(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path, f"my_{kind}.py", f"test_my_{kind}.py")
    run_test(tmp_path, f"test_my_{kind}.py")


def test_the_config_of_the_judge_and_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "my_judge.py", "my_format.py")
    monkeypatch.chdir(tmp_path)
    config = dict(CONFIG)
    for key in ("judge_files", "format_files"):
        [entry] = [code for code in blocks("yaml") if key in code]
        config |= yaml.safe_load(entry)
    settings = load_settings(config)
    assert settings["judges"]["finished"]["cut_off"] == 2
    assert settings["datasets"]["mine"]["format"] == "exchanges"
