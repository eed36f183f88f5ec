"""How a workflow was started is written beside its results."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kvfidelity.pipeline.invocation import FILE, commit_of, read_invocation, write_invocation


def git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *names, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_command_commit_and_configuration_come_back(tmp_path: Path) -> None:
    command = ["/usr/bin/snakemake", "--configfile", "my file.yaml"]
    write_invocation(tmp_path / "results", {"title": "a <b>"}, command, tmp_path)
    found = read_invocation(tmp_path / "results")
    assert found["command"] == "snakemake --configfile 'my file.yaml'"
    assert found["configuration"] == {"title": "a <b>"}
    assert found["started"].endswith("+00:00")
    assert found["commit"] is None


def test_a_commit_says_whether_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    file = tmp_path / "a.txt"
    file.write_text("1")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "first")
    clean = commit_of(tmp_path)
    assert clean is not None and len(clean) == 12
    file.write_text("2")
    assert commit_of(tmp_path) == f"{clean}, with changed files"


def test_without_the_file_nothing_is_said(tmp_path: Path) -> None:
    assert read_invocation(tmp_path) == {}
    (tmp_path / FILE).write_text("{broken")
    assert read_invocation(tmp_path) == {}
