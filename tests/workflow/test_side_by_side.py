"""Two experiments in one working directory: neither touches the other's results."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from kvfidelity.records.artifacts import read_metadata
from tests.workflow.project import CONFIG, Project, environment, merged

POLICY = "tiny/own/gist/stale/small/0/000"
#: One run of another policy, with the dialogues and baseline of the default run.
MORE = {
    "policies": {"gist": {"kind": "sliding_window_gist"}},
    "grid": {"policies": ["gist", "random"], "positions": ["stale"]},
}


def script(project: Project, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"workflow/scripts/{name}.py", *arguments],
        cwd=project.folder,
        env=environment() | {"PYTHONPATH": str(project.folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(project: Project, name: str, content: dict[str, object]) -> None:
    (project.folder / name).write_text(yaml.safe_dump(content))


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in files}


def of_default(project: Project) -> dict[str, str]:
    """The files of the default run."""
    results = project.folder / "results"
    found = contents(results)
    return {path: digest for path, digest in found.items() if f"{results}/mine/" not in path}


@pytest.mark.long(60)
def test_two_experiments_in_turn_and_back_rerun_nothing(project: Project) -> None:
    """Other session settings under the same names: every artifact differs. To the claims, which
    `compare` compares; tests/workflow/test_makefile.py makes a second run's page."""
    write(project, "mine.yaml", {"session": {"max_new_tokens": 4}})
    before = of_default(project)
    planned = project.planned("--configfile", "mine.yaml")
    assert sum(rule == "generate" for rule, _ in planned) == 5
    assert not {"fetch_model", "fetch_dataset", "extract_dialogues"} & {rule for rule, _ in planned}
    mine = ("claims", "--configfile", "mine.yaml")
    done = project.snakemake(*mine)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "run mine, into results/mine" in output
    assert of_default(project) == before
    other = contents(project.folder / "results/mine")
    assert len(other) > 50

    for options in ((), mine):
        assert project.planned(*options) == set()
        back = project.snakemake(*options)
        assert "Nothing to be done" in back.stdout + back.stderr
    assert of_default(project) == before
    assert contents(project.folder / "results/mine") == other

    logs = project.folder / "logs"
    run = "generate/tiny/own/random/stale/small/0/000"
    assert (logs / f"{run}.log").is_file() and (logs / f"mine/{run}.log").is_file()
    compared = script(project, "compare", "default", "mine")
    assert "results/mine" in compared
    for options in ((), ("--configfile", "mine.yaml")):
        assert ", 0 wrong, 0 stale" in script(project, "verify", *options)


@pytest.mark.long(60)
def test_one_name_for_two_sources_is_fetched_once_each(project: Project) -> None:
    """`own` is another file in each of two configurations, which are run in turn."""
    own = project.folder / "resources/dialogues/own.jsonl"
    lines = own.read_text(encoding="utf-8").splitlines(keepends=True)
    (project.folder / "other.jsonl").write_text("".join(reversed(lines)), encoding="utf-8")
    other = {"datasets": {"own": {"path": "other.jsonl"}}, "grid": {"policies": ["random"]}}
    write(project, "mine.yaml", other)
    fetched = contents(project.folder / "resources/datasets")
    before = of_default(project)
    planned = {rule for rule, _ in project.planned("--configfile", "mine.yaml")}
    assert "fetch_dataset" in planned and "fetch_model" not in planned
    mine = ("aggregate", "--configfile", "mine.yaml")
    done = project.snakemake(*mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fetched again" not in done.stdout + done.stderr
    after = contents(project.folder / "resources/datasets")
    assert fetched.items() < after.items(), "both are there"
    for options in ((), mine, ()):
        back = project.snakemake(*options)
        assert "Nothing to be done" in back.stdout + back.stderr
    for options in ((), ("--configfile", "mine.yaml")):
        assert ", 0 wrong, 0 stale" in script(project, "verify", *options)
    assert of_default(project) == before
    assert contents(project.folder / "resources/datasets") == after


@pytest.mark.long(40)
def test_what_another_run_has_computed_is_taken(project: Project) -> None:
    write(project, "mine.yaml", MORE)
    before = of_default(project)
    first = project.snakemake("-n", "--configfile", "mine.yaml")
    assert "2 runs are those of results: same settings, code and dialogues" in first.stderr
    generated = {
        run for rule, run in project.planned("--configfile", "mine.yaml") if rule == "generate"
    }
    assert generated == {POLICY}
    mine = ("aggregate", "--configfile", "mine.yaml")
    done = project.snakemake(*mine)
    assert done.returncode == 0, done.stdout + done.stderr
    for options in ((), mine, ()):
        assert project.planned(*options) == set()
    assert of_default(project) == before

    # Seconds of a batch are not those of single runs.
    write(project, "batch.yaml", merged(MORE, {"session": {"batch_size": 2}}))
    planned = project.planned("--configfile", "batch.yaml")
    assert sum(rule == "generate" for rule, _ in planned) == 3
    assert "extract_dialogues" not in {rule for rule, _ in planned}

    # A changed setting of one policy: its own run only, though the folder of `mine` has the name.
    write(project, "changed.yaml", merged(MORE, {"policies": {"random": {"keep_ratio": 0.8}}}))
    planned = project.planned("--configfile", "changed.yaml")
    generated = {run for rule, run in planned if rule == "generate"}
    assert generated == {"tiny/own/random/stale/small/0/000"}
    taken = project.folder / f"results/changed/generate/{POLICY}/turns.parquet"
    origin = project.folder / f"results/mine/generate/{POLICY}/turns.parquet"
    assert read_metadata(taken)["digest"] == read_metadata(origin)["digest"]


def test_a_configuration_with_all_sections_stands_alone(project: Project) -> None:
    """Nothing of the default is merged into it, such as its policies or a report's settings."""
    alone = {name: CONFIG[name] for name in ("models", "datasets", "policies", "thresholds")}
    alone["policies"] = {"baseline": {"kind": "baseline"}, "tova": {"kind": "tova"}}
    alone["run"] = "one-policy"
    write(project, "mine.yaml", alone)
    done = project.snakemake("-n", "--configfile", "mine.yaml")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "run one-policy, into results/one-policy, configured by mine.yaml\n" in output
    assert "4 cells, 4 runs" in output


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tables.yaml", {}, "'tables' is what the default run calls a part of its results"),
        ("mine.yaml", {"run": "default"}, "'default' is the name of the run of config/config.yaml"),
        ("my [1].yaml", {}, "'my [1]' may have letters, digits, dots, dashes and underscores only"),
    ],
)
def test_a_name_that_no_run_can_have_is_one_line(
    fresh: Project, tmp_path: Path, file: str, content: dict[str, object], message: str
) -> None:
    project = fresh.copy(tmp_path / "project")
    write(project, file, content)
    done = project.snakemake("-n", "--configfile", file)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    [line] = [line for line in output.splitlines() if "error:" in line]
    assert file in line and message in line and "add a line such as `run: my-run`" in line


def test_the_working_directory_may_be_elsewhere(finished: Project, tmp_path: Path) -> None:
    """Scripts, claims and rubrics are the workflow's; data, downloads and results lie elsewhere."""
    elsewhere = tmp_path / "else where"
    (elsewhere / "data").mkdir(parents=True)
    source = finished.folder / "resources/dialogues/own.jsonl"
    (elsewhere / "data/own.jsonl").write_bytes(source.read_bytes())
    changes = {
        "models": {"tiny": {"path": str(finished.folder / "tiny")}},
        "datasets": {"own": {"path": "data/own.jsonl"}},
        "grid": {"policies": ["random"], "positions": ["stale"]},
    }
    (elsewhere / "mine.yaml").write_text(yaml.safe_dump(merged(CONFIG, changes)))
    there = Project(elsewhere)
    command = ("claims", "-s", str(finished.folder / "Snakefile"), "--configfile", "mine.yaml")
    done = there.snakemake(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (elsewhere / "results/mine/tables/claims.csv").is_file()
    assert there.planned(*command) == set()
    moved = finished.snakemake(
        "-n", "claims", "--directory", str(elsewhere), "--configfile", str(elsewhere / "mine.yaml")
    )
    assert "Nothing to be done" in moved.stdout + moved.stderr
