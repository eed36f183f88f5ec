"""Damaged results: the job that reads them fails, `verify` names them, a rerun makes them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.records.artifacts import read_metadata, read_parquet, write_parquet
from kvfidelity.records.grid import dialogue_of
from tests.workflow.project import Project, environment
from tests.workflow.test_reruns import ENDS, WHOLE, jobs_of

RUN = "tiny/own/random/stale/small/0/000"

#: What `write_parquet` notes by itself.
OURS = ("kind", "schema_version", "digest")


def verify(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "workflow/scripts/verify.py", "results", *arguments]
    return subprocess.run(
        command,
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_finished_run_is_whole(finished: Project) -> None:
    done = verify(finished)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 wrong, 0 stale" in done.stdout


@pytest.mark.long(30)
def test_a_truncated_artifact_is_named_and_only_its_run_is_made_again(
    project: Project, finished: Project
) -> None:
    damaged = project.folder / f"results/generate/{RUN}/turns.parquet"
    truncate(damaged)
    met = project.snakemake()
    assert met.returncode != 0
    assert f"error: results/generate/{RUN}/turns.parquet is damaged" in met.stdout + met.stderr
    assert f"damaged: results/generate/{RUN}/turns.parquet" in verify(project, "--remove").stdout
    assert not damaged.exists()
    assert project.planned() == jobs_of({RUN}, *WHOLE) | ENDS
    done = project.snakemake("--until", "claims", "paper_tables", "judge_reliability")
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.digests() == finished.digests()
    assert verify(project).returncode == 0


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        (f"metrics/{dialogue_of(RUN)}/metrics.parquet", jobs_of({RUN}, "measure", "judge") | ENDS),
        (f"judge/formula/{dialogue_of(RUN)}/verdicts.parquet", jobs_of({RUN}, "judge") | ENDS),
        ("tables/policies.parquet", ENDS),
    ],
)
def test_what_was_made_of_a_run_costs_no_model_time(
    project: Project, file: str, jobs: set[tuple[str, str]]
) -> None:
    truncate(project.folder / "results" / file)
    assert verify(project, "--remove").stdout.startswith(f"damaged: results/{file}")
    assert project.planned() == jobs


def test_what_another_configuration_made_is_stale_and_moved_aside(project: Project) -> None:
    project.configure({"policies": {"streaming": {"kind": "streaming_llm", "sinks": 64}}})
    done = verify(project)
    assert done.returncode == 1
    turns = "results/generate/tiny/own/streaming/stale/small/0/000/turns.parquet"
    reason = "it was made with sinks 4, this configuration says 64"
    assert f"stale: {turns}: {reason}" in done.stdout
    # Two artifacts of two runs, and the table that is made of all of them.
    assert ", 0 wrong, 5 stale" in done.stdout
    assert verify(project, "--remove").returncode == 0
    runs = {f"tiny/own/streaming/{mode}/small/0/000" for mode in ("stale", "rerotated")}
    assert project.planned("--rerun-triggers", "mtime") >= jobs_of(runs, "generate") | ENDS


def test_a_second_configuration_file_is_read_as_snakemake_reads_it(project: Project) -> None:
    more = project.folder / "more.yaml"
    more.write_text("policies: {streaming: {sinks: 64}}")
    assert "this configuration says 64" in verify(project, "--configfile", str(more)).stdout
    more.write_text("policies: [")
    done = verify(project, "--configfile", str(more))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {more} cannot be read as YAML")


def test_another_version_of_a_package_is_named(project: Project) -> None:
    file = project.folder / f"results/generate/{RUN}/turns.parquet"
    notes = {key: value for key, value in read_metadata(file).items() if key not in OURS}
    frame = read_parquet(file, kind="turns")
    write_parquet(frame, file, kind="turns", metadata=notes | {"version.torch": "1.13.1"})
    done = verify(project)
    assert done.returncode == 0, "it is no damage"
    here = importlib.metadata.version("torch")
    assert f"note: 1 artifacts were made with torch 1.13.1; here it is {here}" in done.stdout
    (project.folder / "results/tables/turns.parquet").unlink()
    done = project.snakemake("aggregate")
    assert done.returncode == 0, done.stdout + done.stderr
    # The page warns of it: tests/report/test_page.py.
    table = pl.read_parquet(project.folder / "results/tables/environments.parquet")
    assert table["model"].to_list() == ["tiny", "tiny"]
    assert sum("torch 1.13.1" in versions for versions in table["versions"]) == 1


def test_a_removed_pool_is_named(project: Project) -> None:
    pool = project.folder / "results/dialogues/tiny/own/pool.parquet"
    pool.unlink()
    assert project.planned() == set(), "Snakemake's rule: its consumers are finished"
    done = verify(project)
    assert done.returncode == 1
    assert "missing: results/dialogues/tiny/own/pool.parquet: runs were made from it" in done.stdout
    assert ", 0 wrong, 0 stale, 1 missing" in done.stdout
