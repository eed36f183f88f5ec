"""The jobs that Snakemake will start, and why those whose files are there are done again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from kvfidelity.errors import UserError
from kvfidelity.pipeline.staleness import Expectations

#: Why a file is made again if nothing else is wrong with it.
FOLLOWS = "what it is made from is made again"


class PlannedJob(NamedTuple):
    """One job. `name`: its wildcards, joined by slashes. `again`: empty for a file that is new."""

    rule: str
    name: str
    again: str


def planned_jobs(dag: Any, expected: Expectations) -> list[PlannedJob]:
    """All jobs that are not done yet, in no order.

    Args:
        dag: Snakemake's graph of jobs.
        expected: says what an artifact was made with, and what it should be made with.
    """
    return [
        PlannedJob(job.rule.name, job_name(job.wildcards_dict), _again(job, dag, expected))
        for job in dag.needrun_jobs()
        if job.output
    ]


def job_name(wildcards: dict[str, str]) -> str:
    """How a job is named in messages, such as smollm2-135m/sharegpt/gist/stale/half/0/007."""
    return "/".join(map(str, wildcards.values()))


def _again(job: Any, dag: Any, expected: Expectations) -> str:
    reason = dag.reason(job)
    if reason.missing_output or not all(Path(str(file)).exists() for file in job.output):
        return ""
    if reason.forced:
        return "it is forced"
    if reason.incomplete_output:
        return "the job that made it was killed"
    if reason.is_provenance_triggered():
        return _other_content(job, expected) or "its parameters, code or inputs are others now"
    newer = sorted(map(str, reason.updated_input - reason.updated_input_run))
    if newer:
        return _other_content(job, expected) or f"{newer[0]} is newer"
    return FOLLOWS


def _other_content(job: Any, expected: Expectations) -> str | None:
    """What an artifact's own notes say: "it was made with sinks 4, this configuration says 64"."""
    for file in map(Path, map(str, job.output)):
        if file.suffix == ".parquet":
            # A damaged artifact says nothing; a file elsewhere has no notes.
            with contextlib.suppress(UserError, ValueError, OSError):
                return expected.stale(file)
    return None
