"""The workflow used from other folders: imported as a module, deployed, with a working directory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import CONFIG, Project, environment, merged

#: A workflow that imports this one, with a configuration of its own in which this one's is a section.
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


def two_runs(project: Project) -> dict[str, object]:
    """A configuration that makes two runs, with local paths that hold in every folder."""
    paths = {
        "models": {"tiny": {"path": str(project.folder / "tiny")}},
        "datasets": {"own": {"path": str(project.folder / "resources/dialogues/own.jsonl")}},
        "grid": {"policies": ["baseline", "streaming"], "positions": ["stale"]},
    }
    return merged(CONFIG, paths)


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
        yaml.safe_dump({"samples": ["a"], "eviction": two_runs(fresh)})
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
