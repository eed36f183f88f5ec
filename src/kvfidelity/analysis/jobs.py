"""Seconds and memory of the workflow's jobs: a table with one row per rule.

Most rules' jobs are measured by Snakemake (`benchmark:`). The worker measures the jobs that it
executes, because their own process only waits; the values are in their artifacts' notes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.records.artifacts import read_metadata
from kvfidelity.records.grid import RUN_FIELDS, RunKey
from kvfidelity.records.notes import BATCH_SIZE, CPU, PEAK, WALL

#: What a rule's jobs are named by; None for a name that is no part of a run's key. Of such a rule
#: all jobs count that left a benchmark in the results.
NAMED_BY: dict[str, tuple[str, ...] | None] = {
    "fetch_model": ("model",),
    "extract_training_dialogues": None,
    "finetune_model": ("model",),
    "extract_dialogues": ("model", "dataset"),
    "copy_dialogues": ("model", "dataset"),
    "generate": RUN_FIELDS,
    "measure": ("model", "dataset", "dialogue"),
    "score_corruptions": ("model", "dataset"),
    "aggregate": (),
    "judge_reliability": (),
    "claims": (),
    "paper_tables": (),
    "figures": (),
}
#: Rules whose jobs a worker does, and the artifact that holds its notes.
IN_WORKER = {
    "generate": "generate/{}/turns.parquet",
    "score_corruptions": "corruptions/{}/likelihood.parquet",
}
MIB_IN_MB = 2**20 / 1e6
#: Snakemake looks at a job's processes when it starts, and then as often.
LOOKS_EVERY_S = 0.5


class Job(NamedTuple):
    """Seconds and memory of one job; a missing number was not measured."""

    wall_s: float
    cpu_s: float | None
    peak_rss_mb: float | None
    shared: bool = False


def jobs_table(results: Path, runs: Iterable[str]) -> pl.DataFrame:
    """One row per rule of which a job was measured, in the workflow's order.

    Args:
        results: the folder with `benchmarks` and artifacts; jobs that left neither are not counted.
        runs: run keys, as model/dataset/.../dialogue.
    """
    keys = [RunKey.from_path(run) for run in runs]
    rows = []
    for rule, fields in NAMED_BY.items():
        if fields is None:
            names = sorted(file.stem for file in (results / "benchmarks" / rule).glob("*.tsv"))
        else:
            names = sorted({"/".join(getattr(key, field) for field in fields) for key in keys})
        found = [job for name in names if (job := _job(results, rule, name))]
        if found:
            rows.append(_row(rule, found))
    return pl.DataFrame(rows, table_schema("jobs"))


def _row(rule: str, jobs: list[Job]) -> dict[str, Any]:
    walls = [job.wall_s for job in jobs]
    cpus = [job.cpu_s for job in jobs if job.cpu_s is not None]
    peaks = [job.peak_rss_mb for job in jobs if job.peak_rss_mb is not None]
    return {
        "rule": rule,
        "measured": "worker" if rule in IN_WORKER else "job",
        "jobs": len(jobs),
        "jobs_shared": sum(job.shared for job in jobs),
        "wall_s_median": round(median(walls), 3),
        "wall_s_max": round(max(walls), 3),
        "wall_s": round(sum(walls), 3),
        "cpu_s": round(sum(cpus), 3) if cpus else None,
        "peak_rss_mb": round(max(peaks), 1) if peaks else None,
    }


def _job(results: Path, rule: str, name: str) -> Job | None:
    if rule in IN_WORKER:
        file = results / IN_WORKER[rule].format(name)
        return _noted(read_metadata(file)) if file.is_file() else None
    path = f"{rule}/{name}" if name else rule
    return _benchmarked(results / "benchmarks" / f"{path}.tsv")


def _noted(notes: Mapping[str, str]) -> Job | None:
    if WALL not in notes:
        return None
    peak = int(notes[PEAK]) / 1e6
    return Job(float(notes[WALL]), float(notes[CPU]), peak, int(notes[BATCH_SIZE]) > 1)


def _benchmarked(file: Path) -> Job | None:
    """Snakemake's record of a job; of a short one it holds the duration only.

    If a job ends before Snakemake's second measurement, its record is that of its shell's start.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            record = next(csv.DictReader(lines, delimiter="\t"), {})
    except (OSError, UnicodeDecodeError):
        return None
    wall, cpu, peak = (_number(record.get(name)) for name in ("s", "cpu_time", "max_rss"))
    if wall is None:
        return None
    if wall < LOOKS_EVERY_S:
        cpu = peak = None
    return Job(wall, cpu, None if peak is None else peak * MIB_IN_MB)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if isfinite(number) else None
