"""The workflow used from other folders: imported as a module, deployed, by `--directory`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import ROOT, Project, environment

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


def test_the_tiny_configuration_runs_in_a_working_directory(fresh: Project, tmp_path: Path) -> None:
    """`.test` as the catalog runs it, to the tables; and what remains is planned."""
    folder = tmp_path / ".test"
    shutil.copytree(ROOT / ".test/config", folder / "config")
    shutil.copytree(fresh.folder / "tiny", folder / "model")
    (tmp_path / "resources").symlink_to(fresh.folder / "resources")
    elsewhere = ("--snakefile", str(fresh.folder / "workflow/Snakefile"), "--directory", ".test")
    snakemake(tmp_path, *elsewhere, "aggregate")
    assert (folder / "results/tables/turns.parquet").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {".test", "resources"}
    rest = snakemake(tmp_path, *elsewhere, "-n", "--verbose").stdout
    assert "rule report:" in rest and "rule generate:" not in rest


def test_it_is_deployed_from_a_path(fresh: Project, tmp_path: Path) -> None:
    """A copy of the configuration, and a Snakefile that imports the workflow."""
    if (program := shutil.which("snakedeploy")) is None:
        pytest.skip("snakedeploy is not installed")
    folder = tmp_path / "deployed"
    command = [program, "deploy-workflow", str(fresh.folder), str(folder), "--branch", "main"]
    subprocess.run(command, check=True, capture_output=True)
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
