"""What `make` says: a report is named only where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.project import ROOT, Project, environment

NAMED = "report: results/report.html"


def make(project: Project, *arguments: str) -> str:
    """The output of a target, in the environment that runs the tests."""
    shutil.copy2(ROOT / "Makefile", project.folder)
    environment_folder = project.folder / ".venv"
    if not environment_folder.exists():
        environment_folder.symlink_to(sys.prefix)
    done = subprocess.run(
        # It is installed already: `-o` keeps make from looking into that.
        ["make", "-o", ".venv/installed", *arguments],
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("option", ["-np", "--dry-run"])
def test_a_dry_run_names_no_report(project: Project, option: str) -> None:
    output = make(project, "run", f"ARGS={option} --forceall")
    assert "This was a dry-run" in output
    assert NAMED not in output


def test_a_finished_run_names_its_report(project: Project) -> None:
    output = make(project, "run", "ARGS=--configfile config/config.yaml")
    assert "Nothing to be done" in output
    assert NAMED in output


def test_a_run_without_a_report_names_none(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    assert NAMED not in make(project, "run", "ARGS=resources/datasets/own")
    assert (project.folder / "resources/datasets/own").is_dir()


def test_every_command_is_one_even_if_a_file_has_its_name(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)

    def output(*arguments: str) -> str:
        command = ["make", "-o", ".venv/installed", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    commands = [line.split()[0] for line in output("help").splitlines()]
    assert "compare" in commands
    for command in commands:
        (tmp_path / command).touch()
        assert "up to date" not in output("-n", command)
