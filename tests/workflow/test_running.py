"""Whole runs: results, interruptions, failures, user-defined policies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from kvfidelity.analysis.table_names import TABLES_OF_RULE
from kvfidelity.pipeline.settings import read_settings
from kvfidelity.records.artifacts import TIMINGS, read_parquet
from kvfidelity.records.grid import cells, run_keys
from tests.cache.policy_examples import OWN as OWN_POLICY
from tests.workflow.conftest import CONSOLE
from tests.workflow.project import FILES_OF_A_RUN, ROOT, Project

#: The last rules that make artifacts; the figures and the page show them.
TABLES = ("claims", "paper_tables", "judge_reliability")


def test_tables_and_page_tell_what_was_run(finished: Project) -> None:
    policies = pl.read_parquet(finished.folder / "results/tables/policies.parquet")
    assert set(policies["policy"]) == {"random", "streaming"}
    assert (policies["budget_tokens"] == 200).all()
    assert policies["mean"].is_not_null().all()
    page = (finished.folder / "results/report.html").read_text()
    assert "random weights" in page
    assert "GPT-4o" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


@pytest.mark.long(40)
def test_a_killed_run_goes_on_and_gives_the_same_artifacts(
    fresh: Project, finished: Project, tmp_path: Path
) -> None:
    """SIGKILL of Snakemake and of its jobs, twice at random, the worker left alone.

    First while the model is fetched or the dialogues are extracted, then while runs are made.
    """
    project = fresh.copy(tmp_path / "project")
    moments = random.Random(1)
    for seconds in (8, 10):
        process = project.start("--nolock")
        time.sleep(moments.uniform(2, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    project.snakemake("--unlock")
    done = project.snakemake("--until", *TABLES)
    assert done.returncode == 0, done.stdout + done.stderr
    found, expected = project.digests(), finished.digests()
    # It is made with the page, which Snakemake may have come to before it was killed.
    for digests in (found, expected):
        digests.pop("results/tables/jobs.parquet", None)
    assert found == expected
    assert not list((project.folder / "results").rglob(".*.parquet.tmp-*"))


@pytest.mark.long(20)
def test_a_user_defined_policy_runs_alone(project: Project) -> None:
    (project.folder / "mine.py").write_text(OWN_POLICY)
    project.configure(
        {"policy_files": ["mine.py"], "policies": {"mine": {"kind": "every_other", "step": 3}}}
    )
    planned = {run for rule, run in project.planned() if rule == "generate"}
    assert planned == {f"tiny/own/mine/{m}/small/0/000" for m in ("stale", "rerotated")}
    done = project.snakemake("results/tables/policies.parquet")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pl.read_parquet(project.folder / "results/tables/policies.parquet")
    assert "mine" in set(table["policy"])
    (project.folder / "mine.py").write_text(OWN_POLICY.replace("% self.step", "// self.step"))
    assert {run for rule, run in project.planned() if rule == "generate"} == planned


@pytest.mark.parametrize(("cores", "target"), [("1", "only_generate"), ("3", "aggregate")])
def test_runs_in_a_batch_give_the_artifacts_and_tables_of_runs_one_by_one(
    prepared: Project, finished: Project, tmp_path: Path, cores: str, target: str
) -> None:
    """Nothing but timings and rounding differs; with one core the worker looks ahead."""
    project = prepared.copy(tmp_path / "project")
    project.configure({"session": {"batch_size": 3}})
    done = project.snakemake("--cores", cores, target)
    assert done.returncode == 0, done.stdout + done.stderr
    turns = (project.folder / "results/generate").rglob("turns.parquet")
    together = [read_parquet(file, kind="turns")["concurrency"].max() for file in turns]
    assert max(together) == 3
    assert project.planned("only_generate") == set()
    logs = [log.read_text() for log in (project.folder / "logs/generate").rglob("*.log")]
    assert sum(text.count("loading") for text in logs) == 1
    results = project.folder / "results"
    files = sorted((results / "generate").rglob("*.parquet"))
    tables = sorted((results / "tables").glob("*.parquet"))
    assert (len(files), len(tables)) == (5 * FILES_OF_A_RUN, len(TABLES_OF_RULE.get(target, ())))
    for file in files + tables:
        kind = file.stem
        there = finished.folder / file.relative_to(project.folder)
        one, other = (read_parquet(path, kind=kind) for path in (file, there))
        drop = TIMINGS & set(one.columns)
        assert_frame_equal(one.drop(drop), other.drop(drop), rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"datasets": {"own": {"path": "nowhere.jsonl"}}},
            "error: datasets.own.path: dataset 'nowhere.jsonl' does not exist",
        ),
        (
            {"models": {"tiny": {"path": "nowhere"}}},
            "error: models.tiny.path: model 'nowhere' does not exist",
        ),
        ({"datasets": {"own": {"select": {"min_turns": 500}}}}, "relax `select`"),
    ],
)
def test_a_missing_input_is_one_line(
    fresh: Project, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    project = fresh.copy(tmp_path / "project")
    project.configure(change)
    done = project.snakemake("results/dialogues/tiny/own/pool.parquet")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": {"x": {"kind": "randon"}}}, "did you mean 'random'?"),
        ({"polices": {}}, "did you mean 'policies'?"),
        ({"thresholds": {"small": {"at": "600 MBs"}}}, "600MB (10^6 bytes)"),
        ({"policies": {"random": {"keep_ratio": 1.5}}}, "at most 1"),
    ],
)
def test_a_mistaken_configuration_is_one_line(
    fresh: Project, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    project = fresh.copy(tmp_path / "project")
    project.configure(change)
    done = project.snakemake("-n")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    [line] = [line for line in output.splitlines() if "error:" in line]
    assert message in line
    assert "Traceback" not in output


@pytest.mark.parametrize("option", ["-n", "-np", "--dry-run"])
def test_a_dry_run_says_what_it_would_take(fresh: Project, option: str) -> None:
    done = fresh.snakemake(option)
    output = done.stdout + done.stderr
    assert output.count("5 cells, 5 runs of one dialogue each") == 1
    if option != "-np":  # which asks for the commands
        assert len(output) < 3000 and "rule generate:" not in output
    else:
        assert "rule generate:" in output


def test_the_default_run_writes_at_most_30_kb_to_the_console(
    prepared: Project, finished: Project
) -> None:
    """As many lines as the default run has runs, of its names, and all else of a whole run."""
    runs = run_keys(read_settings([], default=ROOT / "config/config.yaml"))
    lines = "".join((project.folder / CONSOLE).read_text() for project in (prepared, finished))
    of_runs = [line for line in lines.splitlines(True) if " of 5 runs] " in line]
    assert len(of_runs) == 5
    # A pace is not told of the last run, so the longest line stands for all.
    one = max(len(line.encode()) - len(line.split()[4].rstrip(",")) for line in of_runs)
    rest = len(lines.encode()) - sum(len(line.encode()) for line in of_runs)
    counts = 2 * (len(str(len(runs))) - 1)
    assert sum(one + counts + len(run) for run in runs) + rest <= 30_000


def test_a_dry_run_says_what_is_done_again_and_why(project: Project) -> None:
    project.reconfigure({"policies": {"streaming": {"sinks": 64}}})
    done = project.snakemake("-n")
    output = done.stdout + done.stderr
    assert "it was made with sinks 4, this configuration says 64" in output
    assert "because what it is made from is made again" in output
    assert len(output) < 3000


def test_failing_jobs_leave_the_others_and_the_last_line_says_how_to_go_on(
    project: Project,
) -> None:
    """A fault of several jobs is said once."""
    broken = OWN_POLICY.replace("return -(", "raise ValueError('out of ideas')\n        return -(")
    (project.folder / "mine.py").write_text(broken)
    project.configure(
        {
            "policy_files": ["mine.py"],
            "policies": {"mine": {"kind": "every_other"}, "gist": {"kind": "sliding_window_gist"}},
        }
    )
    done = project.snakemake("only_generate")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    log = project.folder / "logs/generate/tiny/own/mine/stale/small/0/000.log"
    assert "out of ideas" in log.read_text()
    assert output.count("out of ideas") == 2, "when it is met, and in the summary"
    assert "2 jobs failed alike: ValueError: out of ideas" in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("to go on, type: snakemake --cores 2")
    assert "logs/generate/tiny/own/mine/" in last
    assert len(output) < 8000
    made = project.folder / "results/generate/tiny/own"
    assert (made / "gist/stale/small/0/000/turns.parquet").is_file()
    assert not (made / "mine/stale/small/0/000/turns.parquet").exists()


def test_each_finished_run_is_a_line_and_its_log_names_it(
    prepared: Project, tmp_path: Path
) -> None:
    project = prepared.copy(tmp_path / "project")
    done = project.snakemake("only_generate")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    run = "tiny/own/random/stale/small/0/000"
    [line] = [line for line in output.splitlines() if run in line]
    assert " of 5 runs] " in line
    assert " of 5 runs] " in output and "steps" not in output and "rule generate" not in output
    log = (project.folder / f"logs/generate/{run}.log").read_text()
    turns = [line for line in log.splitlines() if "cached tokens" in line]
    assert turns and all(line.startswith(f"{run}: turn ") for line in turns)


@pytest.mark.parametrize("file", ["config.yaml", "paper.yaml", "experiments/field.yaml"])
def test_a_second_configuration_is_laid_over_the_default_unless_it_stands_alone(
    fresh: Project, tmp_path: Path, file: str
) -> None:
    """The README says so: without a network, a GPU or the model."""
    project = fresh.copy(tmp_path / "project")
    shutil.copy2(ROOT / "config/config.yaml", project.folder / "config/config.yaml")
    settings = read_settings([ROOT / "config" / file], default=ROOT / "config/config.yaml")
    plan = f"{len(cells(settings))} cells, {len(run_keys(settings))} runs of one dialogue each"
    done = project.snakemake("-n", "--jobs", "1", "--quiet", "--configfile", f"config/{file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert plan in done.stdout + done.stderr
    assert len((done.stdout + done.stderr).encode()) <= 3000
    (project.folder / "mine.yaml").write_text("policies: {attention_top_99: {keep_ratio: 1.5}}\n")
    wrong = project.snakemake("-n", "--configfile", "mine.yaml")
    name = "policies.attention_top_99.keep_ratio"
    message = f"mine.yaml + config/config.yaml: {name}: 1.5 is too large"
    assert message in wrong.stdout + wrong.stderr
