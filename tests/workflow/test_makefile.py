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
    done = typed(project, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def refused(project: Project, *arguments: str) -> str:
    """What a target says that cannot be made."""
    done = typed(project, *arguments)
    assert done.returncode != 0
    return done.stderr


def typed(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    shutil.copy2(ROOT / "Makefile", project.folder)
    environment_folder = project.folder / ".venv"
    if not environment_folder.exists():
        environment_folder.symlink_to(sys.prefix)
    return subprocess.run(
        # It is installed already: `-o` keeps make from looking into that.
        ["make", "-o", ".venv/installed", *arguments],
        cwd=project.folder,
        # Its own library, not one that is being edited.
        env=environment() | {"PYTHONPATH": str(project.folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


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
    assert NAMED not in make(project, "run", "ARGS=resources/models/tiny")
    assert (project.folder / "resources/models/tiny").is_dir()


def test_other_runs_are_named_by_their_configuration(project: Project) -> None:
    """The default run is finished; of `mine` there is nothing yet, then its own page."""
    (project.folder / "mine.yaml").write_text("title: another\n")
    for target in ("report", "verify"):
        said = refused(project, target, "CONFIG=mine.yaml")
        assert f"usage: make {target} [CONFIG=FILE], after make run with the same CONFIG" in said
        assert "results/mine" in said
        assert "there is no file gone.yaml" in refused(project, target, "CONFIG=gone.yaml")
    assert "report: results/mine/report.html" in make(project, "run", "CONFIG=mine.yaml")
    make(project, "report", "CONFIG=mine.yaml")
    assert (project.folder / "results/mine/snakemake-report.zip").is_file()
    assert not (project.folder / "results/snakemake-report.zip").exists()
    assert ", 0 wrong, 0 stale" in make(project, "verify", "CONFIG=mine.yaml")
    make(project, "report")
    assert (project.folder / "results/snakemake-report.zip").is_file()


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
