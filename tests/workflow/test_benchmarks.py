"""Jobs are measured, the report shows it, and no job runs for the sake of a measurement."""

from __future__ import annotations

import base64
import json
import os
import shutil

from kvfidelity.analysis.jobs import NAMED_BY
from kvfidelity.records.artifacts import read_parquet
from tests.workflow.project import FILES_OF_A_RUN, Project
from tests.workflow.test_reruns import ALL_RUNS


def test_the_report_shows_seconds_and_memory_of_the_jobs(finished: Project) -> None:
    results = finished.folder / "results"
    table = read_parquet(results / "tables/jobs.parquet", kind="jobs")
    jobs = {row["rule"]: row for row in table.to_dicts()}
    of_training = {"extract_training_dialogues", "finetune_model", "copy_dialogues"}
    assert list(jobs) == [rule for rule in NAMED_BY if rule not in of_training]
    assert (jobs["generate"]["jobs"], jobs["measure"]["jobs"]) == (len(ALL_RUNS), 1)
    for rule in ("generate", "score_corruptions"):
        assert jobs[rule]["measured"] == "worker"
        assert jobs[rule]["jobs_shared"] == 0
        # The client that waits for it has no torch.
        assert jobs[rule]["cpu_s"] > 0 and jobs[rule]["peak_rss_mb"] > 100
    for row in jobs.values():
        assert 0 < row["wall_s_median"] <= row["wall_s_max"] <= row["wall_s"]
    page = (results / "report.html").read_text("utf-8")
    assert "Seconds and memory of the jobs" in page
    assert "share their seconds" not in page
    for name in ("report", "measure/tiny/own/000"):
        assert (results / f"benchmarks/{name}.tsv").is_file()


def test_lost_benchmarks_rerun_nothing(project: Project) -> None:
    shutil.rmtree(project.folder / "results/benchmarks")
    assert project.planned() == set()


def test_old_benchmarks_rerun_nothing(project: Project) -> None:
    """Their times are a copy's, say; content decides."""
    for file in (project.folder / "results/benchmarks").rglob("*.tsv"):
        os.utime(file, (1, 1))
    assert project.planned() == set()


def test_a_run_has_few_files_and_a_tables_record_names_no_run(finished: Project) -> None:
    """What is kept grows with the runs, and by little."""
    results = finished.folder / "results"
    of_runs = [file for file in results.rglob("*") if "small" in file.parts and file.is_file()]
    assert len(of_runs) == FILES_OF_A_RUN * sum("small" in run for run in ALL_RUNS)
    name = base64.urlsafe_b64encode(b"results/tables/turns.parquet").decode()
    record = json.loads((finished.folder / ".snakemake/metadata" / name).read_text())
    assert sorted(record["input"]) == [
        "results/judge/formula/tiny/own/000/verdicts.parquet",
        "results/metrics/tiny/own/000/metrics.parquet",
    ]
