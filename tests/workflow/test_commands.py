"""The command lines that README and docs/running.md tell a reader to type are accepted."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import ROOT, Project, environment

PAGES = ("README.md", "docs/running.md")
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))
INLINE = "\n".join(re.findall(r"`((?:make|snakemake) [^`]+)`", TEXT))
LINES = [line.split("   ")[0].strip() for line in f"{BLOCKS}\n{INLINE}".splitlines()]
MAKE = sorted({line for line in LINES if line.startswith("make ")})
# That command plans nothing; tests/workflow/test_elsewhere.py runs it.
UNIT_TESTS = "--generate-unit-tests"
SNAKEMAKE = sorted(
    {line for line in LINES if line.startswith("snakemake ") and UNIT_TESTS not in line}
)


def test_there_are_commands_to_try() -> None:
    assert {"make run", "make test"} <= set(MAKE)
    assert len(SNAKEMAKE) >= 6


@pytest.mark.parametrize("line", MAKE)
def test_make_knows_the_target(line: str, tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    command = [*shlex.split(line), "-n", "-o", ".venv/installed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", SNAKEMAKE)
def test_snakemake_plans_what_the_line_says(line: str, fresh: Project, tmp_path: Path) -> None:
    if "slurm" in line and not find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("the plugin for Slurm is not installed")
    project = fresh.copy(tmp_path / "project")
    shutil.copy2(ROOT / "config/config.yaml", project.folder / "config/config.yaml")
    (project.folder / "mine.yaml").write_text(yaml.safe_dump({"title": "mine"}))
    (project.folder / "elsewhere").mkdir()
    line = line.replace("/path/to/kvfidelity", str(project.folder))
    # `--jobs`: for a configuration that names a GPU, which may not be here.
    more = [option for option in ("-n", "--jobs=1") if option not in line]
    if "cores" not in line:
        more.append("--cores=1")
    _, *options = shlex.split(line)
    done = forked.run([*options, *more], project.folder, environment(), LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs of one dialogue each" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("make compare", "usage: make compare A B"),
        ("make compare default", "usage: make compare A B"),
        ("make verify", "usage: make verify [CONFIG=FILE], after make run"),
        ("make report", "usage: make report [CONFIG=FILE], after make run"),
        ("make chaos ROUNDS=many", "usage: make chaos ROUNDS=10"),
        ("make tests", "usage: make TARGET; there is no target tests"),
    ],
)
def test_a_misused_target_says_its_usage(line: str, usage: str, tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    command = [*shlex.split(line), "-o", ".venv/installed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert usage in done.stderr
