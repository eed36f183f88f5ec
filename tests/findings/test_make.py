"""`make findings`: the runs in their order, each published once finished. A script that copies
a finished run stands in for Snakemake and the GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvfidelity.findings.plan import SMOLLM2

ROOT = Path(__file__).parents[2]
#: Copies the run of the first configuration it is given, and fails for all others.
SNAKEMAKE = """#!/bin/sh
echo "$@" >> asked
case "$*" in *paper_reference*) mkdir -p results && cp -r {run} results/paper_reference-{model};;
*) exit 1;; esac
"""


@pytest.fixture
def project(tmp_path: Path, finished: Path) -> Path:
    for name in ("config", "workflow", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy2(ROOT / "Makefile", tmp_path)
    (tmp_path / "docs").mkdir()
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    scripts = {
        "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
        "snakemake": SNAKEMAKE.format(run=finished / "paper_reference", model=SMOLLM2),
    }
    for name, script in scripts.items():
        (programs / name).write_text(script, encoding="utf-8")
        (programs / name).chmod(0o755)
    return tmp_path


def make_findings(project: Path, model: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["make", "-o", ".venv/installed", "findings", f"MODEL={model}"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_it_publishes_each_run_and_stops_at_one_that_fails(project: Path) -> None:
    done = make_findings(project, SMOLLM2)
    assert done.returncode != 0
    published = project / "docs/findings/paper_reference" / SMOLLM2
    assert (published / "policies.parquet").is_file()
    asked = (project / "asked").read_text("utf-8").splitlines()
    assert ["paper_reference" in asked[0], "paper_own" in asked[1], len(asked)] == [True, True, 2]
    assert all(f"config/findings/models/{SMOLLM2}.yaml" in line for line in asked)
    # The page is written when all runs are published.
    assert not (project / "docs/findings.md").exists()


def test_an_unknown_model_is_refused_before_any_run(project: Path) -> None:
    done = make_findings(project, "llama")
    assert done.returncode != 0 and "no model of the findings is called 'llama'" in done.stderr
    assert not (project / "asked").exists()
