"""Seconds and memory of the jobs, from Snakemake's benchmarks and the worker's notes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from snakemake.benchmark import BenchmarkRecord, print_benchmark_tsv

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.jobs import NAMED_BY, jobs_table
from kvfidelity.records.artifacts import digest, read_metadata, write_parquet
from kvfidelity.records.grid import dialogue_of
from kvfidelity.records.notes import BATCH_SIZE, CPU, PEAK, WALL
from kvfidelity.report.formatting import rounded

RUNS = [f"tiny/own/{policy}/stale/0.7win/0/000" for policy in ("h2o", "random", "snapkv")]


def benchmark(results: Path, name: str, *, wall: float, cpu: float, mib: float | None) -> None:
    """A benchmark as Snakemake writes it; without memory, of a job that was over at once."""
    record = BenchmarkRecord(
        running_time=wall,
        max_rss=mib,
        max_vms=mib,
        max_uss=mib,
        max_pss=mib,
        io_in=0.0,
        io_out=0.0,
        cpu_usage=cpu,
        cpu_time=cpu,
    )
    record.data_collected = mib is not None
    record.process_gone = mib is None
    file = results / "benchmarks" / f"{name}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as out:
        print_benchmark_tsv([record], out, False)


def noted(results: Path, name: str, wall: float, batch_size: int = 1) -> None:
    """A worker's notes in an artifact, which is made if there is none."""
    notes = {WALL: f"{wall}", CPU: f"{2 * wall}", PEAK: "3000000", BATCH_SIZE: f"{batch_size}"}
    kind = Path(name).name
    file = results / f"{name}.parquet"
    frame = pl.DataFrame({"turn": [0]})
    if file.exists():
        frame = pl.read_parquet(file)
        known = read_metadata(file)
        notes |= {name: known[name] for name in ("code", "spec", "dtype")}
    write_parquet(frame, file, kind=kind, metadata=notes)


def test_no_measurement_is_an_empty_table(tmp_path: Path) -> None:
    table = jobs_table(tmp_path, RUNS)
    assert (table.height, table.schema) == (0, pl.Schema(table_schema("jobs")))


def test_benchmarks_are_summed_up_by_rule(tmp_path: Path) -> None:
    runs = [run.replace("/000", f"/{number:03d}") for number, run in enumerate(RUNS)]
    for run, wall in zip(runs, (1.0, 2.0, 6.0), strict=True):
        benchmark(tmp_path, f"measure/{dialogue_of(run)}", wall=wall, cpu=wall / 2, mib=100 * wall)
    [row] = jobs_table(tmp_path, runs).to_dicts()
    assert row == {
        "rule": "measure",
        "measured": "job",
        "jobs": 3,
        "jobs_shared": 0,
        "wall_s_median": 2.0,
        "wall_s_max": 6.0,
        "wall_s": 9.0,
        "cpu_s": 4.5,
        "peak_rss_mb": 629.1,
    }


def test_each_rule_is_found_where_its_jobs_are_written(tmp_path: Path) -> None:
    names = [
        "fetch_model/tiny",
        "extract_training_dialogues/0123abcd",
        "finetune_model/tiny",
        "extract_dialogues/tiny/own",
        "copy_dialogues/tiny/own",
        f"measure/{dialogue_of(RUNS[0])}",
    ]
    for name in (
        *names,
        "aggregate",
        "judge_reliability",
        "claims",
        "paper_tables",
        "figures",
        "report",
    ):
        benchmark(tmp_path, name, wall=1, cpu=1, mib=1)
    noted(tmp_path, f"generate/{RUNS[0]}/turns", 1)
    noted(tmp_path, "corruptions/tiny/own/likelihood", 1)
    table = jobs_table(tmp_path, RUNS)
    assert table["rule"].to_list() == list(NAMED_BY)
    assert table["jobs"].to_list() == [1] * len(NAMED_BY)


@pytest.mark.parametrize("mib", [None, 10.0])
def test_a_job_that_ended_at_once_has_a_duration_only(tmp_path: Path, mib: float | None) -> None:
    benchmark(tmp_path, f"measure/{dialogue_of(RUNS[0])}", wall=0.25, cpu=0, mib=mib)
    [row] = jobs_table(tmp_path, RUNS).to_dicts()
    assert (row["jobs"], row["wall_s"], row["cpu_s"], row["peak_rss_mb"]) == (1, 0.25, None, None)


@pytest.mark.parametrize("text", ["", "s\th:m:s\n", "s\tmax_rss\nNA\t-\n", "\xff"])
def test_a_benchmark_that_cannot_be_read_counts_as_missing(tmp_path: Path, text: str) -> None:
    benchmark(tmp_path, "aggregate", wall=1, cpu=1, mib=1)
    (tmp_path / "benchmarks/aggregate.tsv").write_text(text, encoding="latin-1")
    assert jobs_table(tmp_path, RUNS).is_empty()


def test_runs_are_measured_by_their_worker_not_by_the_client(tmp_path: Path) -> None:
    for run in RUNS[:2]:
        noted(tmp_path, f"generate/{run}/turns", 4, batch_size=2 if run == RUNS[0] else 1)
        benchmark(tmp_path, f"generate/{run}", wall=9, cpu=0.1, mib=20)
    # Made before anything was noted.
    write_parquet(
        pl.DataFrame({"turn": [0]}), tmp_path / f"generate/{RUNS[2]}/turns.parquet", kind="turns"
    )
    [row] = jobs_table(tmp_path, RUNS).to_dicts()
    assert (row["rule"], row["measured"]) == ("generate", "worker")
    assert (row["jobs"], row["jobs_shared"]) == (2, 1)
    assert (row["wall_s"], row["cpu_s"], row["peak_rss_mb"]) == (8.0, 16.0, 3.0)


def test_seconds_are_not_part_of_the_digest(tmp_path: Path) -> None:
    digests = []
    for wall in (1.0, 2.0):
        benchmark(tmp_path, "aggregate", wall=wall, cpu=wall, mib=wall)
        digests.append(digest(jobs_table(tmp_path, RUNS)))
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.314, "0.31"), (9.996, "10.0"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_numbers_are_rounded_for_readers(value: float | None, text: str) -> None:
    assert rounded(value) == text
