"""Two halves of a grid, run in two places, merged into what one run of the whole gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet
from kvfidelity.records.grid import dialogue_of
from tests.workflow.project import Project
from tests.workflow.test_damage import truncate, verify

RUN = "tiny/own/random/stale/small/0/000"


@pytest.fixture
def halves(fresh: Project, finished: Project, tmp_path: Path) -> Project:
    """A folder without model or data that merges the halves, each by position mode, of a run."""
    project = fresh.copy(tmp_path / "project")
    shutil.rmtree(project.folder / "tiny")
    for mode, other in (("stale", "rerotated"), ("rerotated", "stale")):
        half = project.folder / mode
        shutil.copytree(finished.folder / "results", half)
        for path in half.glob(f"**/{other}"):
            shutil.rmtree(path)
        for made in ("tables", "figures"):
            shutil.rmtree(half / made)
    project.configure({"merge": ["stale", "rerotated"]})
    return project


@pytest.mark.long(30)
def test_halves_give_the_tables_of_the_whole(halves: Project, finished: Project) -> None:
    planned = {rule for rule, _ in halves.planned()}
    assert {"merge", "lengths", "aggregate", "report"} <= planned
    assert not planned & {"fetch_model", "extract_dialogues", "generate", "measure", "judge"}
    done = halves.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    expected, found = finished.digests(), halves.digests()
    del found["results/tables/jobs.parquet"]  # of other jobs
    del expected["results/tables/jobs.parquet"]
    assert found == {name: expected[name] for name in found}
    assert not [name for name in expected.keys() - found.keys() if "tables" in name]
    assert verify(halves).returncode == 0
    # The times of generate jobs are in their artifacts; those of other jobs are not merged.
    table = read_parquet(halves.folder / "results/tables/jobs.parquet", kind="jobs")
    jobs = dict(table.select("rule", "jobs").iter_rows())
    assert jobs == {
        "generate": 5,
        "aggregate": 1,
        "judge_reliability": 1,
        "claims": 1,
        "paper_tables": 1,
        "figures": 1,
    }
    account = json.loads((halves.folder / "results/merge.json").read_text())
    assert account["runs"] == {"stale": 3, "rerotated": 2}
    assert account["also_in"] == ["tiny/own/baseline/original/none/0/000"]
    assert account["differing"] == []
    assert halves.planned() == set()


def without_a_run(project: Project) -> None:
    shutil.rmtree(project.folder / "stale/generate" / RUN)


def without_results(project: Project) -> None:
    shutil.rmtree(project.folder / "rerotated")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_run, f"1 of 5 runs are in none of stale, rerotated, such as {RUN}"),
        (without_results, "rerotated holds no results"),
    ],
)
def test_a_missing_run_is_an_error_before_anything_runs(
    halves: Project, damage: Callable[[Project], None], message: str
) -> None:
    damage(halves)
    done = halves.snakemake("-n")
    assert done.returncode != 0
    assert f"error: merge: {message}" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_missing_verdicts_of_a_folder_are_made_here(halves: Project) -> None:
    shutil.rmtree(halves.folder / "stale/judge")
    planned = {(rule, wildcards) for rule, wildcards in halves.planned() if rule == "judge"}
    assert planned == {("judge", f"formula/{dialogue_of(RUN)}")}


def damaged(half: Path) -> None:
    truncate(half / f"metrics/{dialogue_of(RUN)}/metrics.parquet")


def other_code(half: Path) -> None:
    file = half / f"generate/{RUN}/turns.parquet"
    notes = read_metadata(file)
    notes = {key: notes[key] for key in ("spec",)} | {"code": "0" * 12}
    write_parquet(read_parquet(file, kind="turns"), file, kind="turns", metadata=notes)


def other_policy(half: Path) -> None:
    file = half / f"generate/{RUN}/turns.parquet"
    notes = read_metadata(file)
    spec = json.loads(notes["spec"]) | {"parameters": {"keep_ratio": 0.5}}
    notes = {"code": notes["code"], "spec": json.dumps(spec)}
    write_parquet(read_parquet(file, kind="turns"), file, kind="turns", metadata=notes)


def other_dialogues(half: Path) -> None:
    file = half / "dialogues/tiny/own/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kept": 99}))


def nested_manifest(half: Path) -> None:
    (half / "dialogues/tiny/own/manifest.json").write_text("[" * 200_000)


def without_notes(half: Path) -> None:
    file = half / f"generate/{RUN}/turns.parquet"
    write_parquet(read_parquet(file, kind="turns"), file, kind="turns")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged, f"error: stale/metrics/{dialogue_of(RUN)}/metrics.parquet is damaged"),
        (other_code, "were made by different code"),
        (other_policy, "was made with keep_ratio 0.5, this configuration says 0.9"),
        (other_dialogues, "the folders' dialogues are not the same"),
        (nested_manifest, "values are nested more than 64 levels deep): make it again there"),
        (without_notes, "does not say how it was made; make it again where it was made"),
    ],
)
def test_what_cannot_be_compared_is_not_merged(
    halves: Project, damage: Callable[[Path], None], message: str
) -> None:
    damage(halves.folder / "stale")
    done = halves.snakemake("results/merge.json")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert not list((halves.folder / "results").rglob("*.parquet"))
