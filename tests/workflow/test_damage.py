"""Damage to results: a job that meets it says so, `verify` names it, the workflow makes it anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .project import Project, environment
from .test_reruns import ENDS, WHOLE, jobs_of

RUN = "tiny/own/random/stale/small/0/000"


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


def test_a_truncated_artifact_is_named_and_only_its_run_is_made_anew(
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
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.digests() == finished.digests()
    assert verify(project).returncode == 0


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        (f"metrics/{RUN}/metrics.parquet", jobs_of({RUN}, "measure", "judge") | ENDS),
        (f"judge/offline/{RUN}/verdicts.parquet", jobs_of({RUN}, "judge") | ENDS),
        ("tables/policies.parquet", ENDS),
    ],
)
def test_what_was_made_of_a_run_costs_no_model_time(
    project: Project, file: str, jobs: set[tuple[str, str]]
) -> None:
    truncate(project.folder / "results" / file)
    assert verify(project, "--remove").stdout.startswith(f"damaged: results/{file}")
    assert project.planned() == jobs
