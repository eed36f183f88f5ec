"""The workflow used from other folders: imported as a module, deployed, by `--directory`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import ROOT, Project, command, environment

#: A workflow that imports this one; this one's configuration is a section of its own.
IMPORTING = """
configfile: "config/config.yaml"


module kv:
    snakefile:
        "{snakefile}"
    config:
        config["eviction"]
    prefix:
        "eviction"


use rule * from kv as kv_*


rule size:
    default_target: True
    input:
        rules.kv_all.input,
        page="eviction/results/report.html",
    output:
        "size.txt",
    shell:
        "wc -c < {{input.page}} > {{output}}"
"""


def tiny(project: Project) -> dict[str, Any]:
    """The configuration of .test, with local paths that hold in every folder."""
    config: dict[str, Any] = yaml.safe_load((ROOT / ".test/config/config.yaml").read_text())
    config["models"]["tiny"]["path"] = str(project.folder / "tiny")
    config["datasets"]["own"]["path"] = str(project.folder / "resources/dialogues/own.jsonl")
    return config


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = forked.run(("--cores", "2", *arguments), folder, environment(), 3 * LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.long(40)
def test_another_workflow_imports_it_with_a_prefix(fresh: Project, tmp_path: Path) -> None:
    """To its report: rules, scripts, rubrics, claims and defaults are those of its own folder."""
    folder = tmp_path / "other"
    (folder / "config").mkdir(parents=True)
    (folder / "config/config.yaml").write_text(
        yaml.safe_dump({"samples": ["a"], "eviction": tiny(fresh)})
    )
    snakefile = fresh.folder / "workflow/Snakefile"
    (folder / "Snakefile").write_text(IMPORTING.format(snakefile=snakefile))
    snakemake(folder)
    results = folder / "eviction/results"
    assert int((folder / "size.txt").read_text()) == (results / "report.html").stat().st_size
    assert len(list(results.glob("generate/tiny/own/*/*/*/0/000/turns.parquet"))) == 2
    assert (folder / "eviction/resources/models/tiny/config.json").is_file()
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        *("Snakefile", "config", "eviction", "size.txt")
    }
    again = snakemake(folder, "-n")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.long(60)
def test_the_tiny_configuration_runs_in_a_working_directory_and_its_unit_tests_pass(
    fresh: Project, tmp_path: Path
) -> None:
    """`.test` as the catalog runs it, to the tables, and Snakemake's own tests of some rules; CI
    runs those of all rules. What remains is planned."""
    project = fresh.copy(tmp_path / "project")
    folder = project.folder / ".test"
    made_here = shutil.ignore_patterns("model", "own.jsonl", "results", "logs", ".*")
    shutil.copytree(ROOT / ".test", folder, ignore=made_here)
    shutil.move(project.folder / "tiny", folder / "config/model")
    shutil.copy2(project.folder / "resources/dialogues/own.jsonl", folder / "config")
    before = set(project.folder.iterdir())
    tiny = ("--snakefile", "workflow/Snakefile", "--directory", ".test")
    snakemake(project.folder, *tiny, "aggregate")
    assert (folder / "results/tables/turns.parquet").is_file()
    rest = snakemake(project.folder, *tiny, "-n", "--verbose").stdout
    assert "rule report:" in rest and "rule generate:" not in rest
    assert set(project.folder.iterdir()) == before

    # In a process of its own: Snakemake makes paths relative to the folder where it was imported.
    making = command(*tiny, "aggregate", "--generate-unit-tests", ".tests/unit")
    subprocess.run(making, cwd=project.folder, env=environment(), check=True, capture_output=True)
    tests = folder / ".tests/unit"
    assert {file.stem for file in tests.glob("test_*.py")} == {
        f"test_{rule}"
        for rule in (
            *("fetch_model", "fetch_dataset", "extract_dialogues", "generate", "measure"),
            *("judge", "aggregate"),
        )
    }
    run = [f"{tests}/test_{rule}.py" for rule in ("generate", "aggregate")]
    testing = [sys.executable, "-m", "pytest", "-q", "-p", "equal_but_for_timings", *run]
    own = environment() | {"PYTHONPATH": f"{folder}{os.pathsep}{project.folder / 'src'}"}
    done = subprocess.run(
        testing, cwd=project.folder, env=own, capture_output=True, text=True, check=False
    )
    assert "2 passed" in done.stdout, done.stdout[-5000:] + done.stderr


def test_it_is_deployed_from_a_path(fresh: Project, tmp_path: Path) -> None:
    """A copy of the configuration, and a Snakefile that imports the workflow."""
    if (program := shutil.which("snakedeploy")) is None:
        pytest.skip("snakedeploy is not installed")
    folder = tmp_path / "deployed"
    deploying = [program, "deploy-workflow", str(fresh.folder), str(folder), "--branch", "main"]
    subprocess.run(deploying, check=True, capture_output=True)
    snakefile = folder / "workflow/Snakefile"
    text = snakefile.read_text()
    # snakedeploy names the file relative to the source, which Snakemake looks for in the copy.
    assert text.count('"workflow/Snakefile"') == 1
    snakefile.write_text(
        text.replace('"workflow/Snakefile"', f'"{fresh.folder}/workflow/Snakefile"')
    )
    (folder / "config/config.yaml").write_text(yaml.safe_dump(tiny(fresh)))
    plan = snakemake(folder, "-n").stdout
    for rule in ("fetch_model", "generate", "judge", "report"):
        assert f"rule {rule}:" in plan
    assert "results/report.html" in plan
