"""A configuration names its run, and each run has a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.pipeline.run_folders import (
    CONTENTS,
    folder_of,
    logs_folder,
    named_runs,
    results_folder,
    run_name,
)

ROOT = Path(__file__).parents[2]
DEFAULT = Path("config/config.yaml").absolute()


@pytest.mark.parametrize(
    ("given", "files", "name"),
    [
        ({}, [], "default"),
        ({}, [DEFAULT], "default"),
        ({}, ["mine.yaml"], "mine"),
        ({}, ["/elsewhere/config.yaml"], "config"),
        ({}, [DEFAULT, "a.yaml", "b.yml"], "a-b"),
        ({"run": "named"}, ["mine.yaml"], "named"),
        ({"run": "named"}, [], "named"),
    ],
)
def test_the_name_is_the_keys_or_the_files(
    given: dict[str, Any], files: list[Path], name: str
) -> None:
    assert run_name(given, given, files) == name


def test_the_defaults_name_is_not_that_of_what_is_laid_over_it() -> None:
    config = {"run": "base"}
    assert run_name(config, {}, []) == "base"
    assert run_name(config, {}, [Path("mine.yaml")]) == "mine"


@pytest.mark.parametrize("name", ["tables", "default", "../out", ".hidden", "a b", 7, ["a"]])
def test_a_name_that_would_not_be_a_folder_of_its_own_is_refused(name: object) -> None:
    with pytest.raises(UserError, match="add a line such as `run: my-run`"):
        run_name({"run": name}, {"run": name}, [Path("mine.yaml")])


def test_what_the_default_run_writes_cannot_be_a_runs_name() -> None:
    """The default run's files and the folders of the other runs lie in one folder."""
    files = [*(ROOT / "workflow/rules").glob("*.smk"), *(ROOT / "src/kvfidelity").rglob("*.py")]
    texts = "\n".join(file.read_text() for file in files)
    written = set(re.findall(r"<results>/([\w.-]+)", texts))
    written |= set(re.findall(r'artifacts\(f?"([\w-]+)', texts))
    assert {"generate", "tables", "report.html", "merge.json"} <= written <= CONTENTS
    assert "results/snakemake-report.zip" in (ROOT / "Makefile").read_text()


def test_runs_are_found_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_runs() == []
    for folder in ("results/mine/dialogues", "results/dialogues", "results/mine.removed/x", "far"):
        Path(folder).mkdir(parents=True)
    assert named_runs() == ["mine"]
    assert folder_of("mine") == results_folder("mine") == Path("results/mine")
    assert folder_of("default") == Path("results") and folder_of("far") == Path("far")
    assert logs_folder("mine") == Path("logs/mine") and logs_folder("default") == Path("logs")
    with pytest.raises(UserError, match="'none'; the runs here are default, mine"):
        folder_of("none")


def test_a_copy_of_the_default_configuration_is_the_default_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Snakemake's unit tests give it: by its path in the folder that they copied it from."""
    for folder in ("there", "here"):
        (tmp_path / folder / "config").mkdir(parents=True)
        (tmp_path / folder / "config/config.yaml").write_text("title: one")
    monkeypatch.chdir(tmp_path / "here")
    copy = tmp_path / "there/config/config.yaml"
    assert run_name({}, {}, [copy]) == "default"
    copy.write_text("title: another")
    assert run_name({}, {}, [copy]) == "config"
