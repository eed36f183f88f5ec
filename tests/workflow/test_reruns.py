"""After a real run and a real edit, a real dry run names exactly the affected jobs."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.records.grid import dialogue_of
from tests.workflow.project import Job, Project, environment

STALE, REROTATED = "stale/small/0", "rerotated/small/0"
ENDS = {
    (rule, "")
    for rule in (
        "aggregate",
        "judge_reliability",
        "claims",
        "paper_tables",
        "figures",
        "report",
        "all",
    )
}
PAGE = {("report", ""), ("all", "")}
JUDGE_TEST = {("test_judge", "formula/tiny/own")}
ALL_RUNS = {
    "tiny/own/baseline/original/none/0/000",
    *(f"tiny/own/{p}/{m}/000" for p in ("random", "streaming") for m in (STALE, REROTATED)),
}


def jobs_of(runs: set[str], *stages: str) -> set[Job]:
    """Of the runs themselves, and of the text metrics and verdicts of their dialogues' runs."""
    found = {("generate", run) for run in runs if "generate" in stages}
    for dialogue in map(dialogue_of, runs):
        found |= {("measure", dialogue)} if "measure" in stages else set()
        found |= {("judge", f"formula/{dialogue}")} if "judge" in stages else set()
    return found


WHOLE = ("generate", "measure", "judge")
STATEMENT = "\nCHANGED = 1\n"
POOLS = {("extract_dialogues", "tiny/own"), ("lengths", "tiny/own")}


def test_a_finished_run_has_nothing_to_do(finished: Project) -> None:
    assert (finished.folder / "results/report.html").stat().st_size > 10_000
    assert finished.planned() == set()
    dry_run = finished.snakemake("-n")
    assert "were not made here" not in dry_run.stdout + dry_run.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            {"policies": {"gist": {"kind": "sliding_window_gist"}}},
            jobs_of({f"tiny/own/gist/{m}/000" for m in (STALE, REROTATED)}, *WHOLE) | ENDS,
            id="a new policy runs that policy",
        ),
        pytest.param(
            {"policies": {"streaming": {"kind": "streaming_llm", "sinks": 8}}},
            jobs_of({f"tiny/own/streaming/{m}/000" for m in (STALE, REROTATED)}, *WHOLE) | ENDS,
            id="a policy's parameter reruns that policy",
        ),
        pytest.param(
            {"datasets": {"own": {"count": 2}}},
            jobs_of({run[:-3] + "001" for run in ALL_RUNS}, *WHOLE) | ENDS,
            id="a larger count runs the new dialogues",
        ),
        pytest.param(
            {"thresholds": {"small": {"at": "700tok"}}},
            jobs_of({run for run in ALL_RUNS if "small" in run}, *WHOLE) | ENDS,
            id="a threshold leaves the baseline alone",
        ),
        pytest.param(
            {"title": "another name"},
            PAGE,
            id="renaming the run writes the page again",
        ),
        pytest.param({"report": {"resamples": 101}}, ENDS, id="statistics rerun the tables"),
        pytest.param(
            {"policies": {"random": {"keep_ratio": 0.9, "kind": "random"}}},
            set(),
            id="the order of keys means nothing",
        ),
        pytest.param(
            {"session": {"prefix_memory": "1GiB", "batch_size": 4}},
            set(),
            id="memory for prefixes and the batch size change no result",
        ),
        pytest.param(
            {"session": {"prefix_disk": "1GiB"}}, set(), id="disk for prefixes means nothing"
        ),
        pytest.param(
            {
                "models": {"tiny": {"licence": "MIT", "label": "another"}},
                "datasets": {"own": {"licence": "CC0"}},
            },
            PAGE,
            id="a licence or label writes the page",
        ),
        pytest.param(
            {"models": {"tiny": {"device": "cpu"}}},
            jobs_of(ALL_RUNS, *WHOLE) | JUDGE_TEST | {("score_corruptions", "tiny/own")} | ENDS,
            id="a device reruns the runs and fetches nothing",
        ),
        pytest.param(
            {"models": {"tiny": {"dtype": "bfloat16"}}},
            jobs_of(ALL_RUNS, *WHOLE) | JUDGE_TEST | {("score_corruptions", "tiny/own")} | ENDS,
            id="a dtype reruns the runs and fetches nothing",
        ),
        pytest.param(
            {"policies": {"streaming": {"kind": "streaming_llm", "recent": 2000}}},
            set(),
            id="a default written out means nothing",
        ),
        pytest.param(
            # The window has 16,384 tokens; a token takes 2 x 2 layers x 2 heads x 16 x 4 bytes.
            {"thresholds": {"small": {"at": "0.036622win", "target": "102.4kB"}}},
            set(),
            id="the same size in another unit means nothing",
        ),
    ],
)
def test_a_change_of_the_configuration(
    project: Project, change: dict[str, Any], expected: set[Job]
) -> None:
    project.configure(change)
    assert project.planned() == expected


LIBRARY = "src/kvfidelity"


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("cache/attention.py", WHOLE),
        ("generation/turns.py", WHOLE),
        ("metrics/positions.py", WHOLE),
        ("metrics/text.py", ("measure", "judge")),
        ("judges/kinds/formula.py", ("judge",)),
        ("analysis/statistics.py", ()),
        ("worker/client.py", None),
        ("pipeline/settings.py", None),
        ("cli.py", None),
    ],
)
def test_a_change_of_code_reruns_its_stage_and_what_follows(
    project: Project, file: str, stages: tuple[str, ...] | None
) -> None:
    project.append(f"{LIBRARY}/{file}", STATEMENT)
    expected = set() if stages is None else jobs_of(ALL_RUNS, *stages) | ENDS
    # The test of the judges is touched by what touches their verdicts.
    expected |= JUDGE_TEST if stages else set()
    expected |= {("score_corruptions", "tiny/own")} if stages == WHOLE else set()
    assert project.planned() == expected


def test_a_comment_reruns_nothing(project: Project) -> None:
    for file in (project.folder / LIBRARY).rglob("*.py"):
        project.append(str(file.relative_to(project.folder)), "\n# A comment.\n")
    assert project.planned() == set()


def test_a_new_builtin_policy_reruns_nothing(project: Project) -> None:
    folder = f"{LIBRARY}/cache/policies"
    text = (project.folder / folder / "random.py").read_text()
    project.append(f"{folder}/newest.py", text.replace('"random"', '"newest"'))
    assert project.planned() == set()
    done = subprocess.run(
        [sys.executable, "-m", "kvfidelity.cache.policies.registry"],
        cwd=project.folder,
        env=environment() | {"PYTHONPATH": str(project.folder / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"newest"' in done.stdout
    (project.folder / LIBRARY / "pipeline/schemas/policies.json").write_text(done.stdout)
    assert project.planned() == set()


def test_the_code_of_a_policy_reruns_its_runs(project: Project) -> None:
    project.append(f"{LIBRARY}/cache/policies/random.py", STATEMENT)
    runs = {f"tiny/own/random/{m}/000" for m in (STALE, REROTATED)}
    assert project.planned() == jobs_of(runs, *WHOLE) | ENDS


def test_a_helper_reruns_the_stages_that_import_it(project: Project) -> None:
    """The dialogues' lengths are written into their manifest, and drawn."""
    project.append(f"{LIBRARY}/dialogues/lengths.py", STATEMENT)
    after_dialogues = jobs_of(ALL_RUNS, *WHOLE) | JUDGE_TEST | ENDS
    after_dialogues |= {("corrupt_replies", "tiny/own"), ("score_corruptions", "tiny/own")}
    assert project.planned() == POOLS | after_dialogues


def test_a_new_schema_version_plans_every_job_that_writes_artifacts(project: Project) -> None:
    """None of them could read what the others wrote before."""
    name = "src/kvfidelity/records/schema_version.py"
    project.append(name, "\nSCHEMA_VERSION += 1\n")
    texts = {("corrupt_replies", "tiny/own"), ("score_corruptions", "tiny/own")}
    assert project.planned() == jobs_of(ALL_RUNS, *WHOLE) | POOLS | texts | JUDGE_TEST | ENDS


def test_a_plot_does_not_rerun_a_table(project: Project) -> None:
    project.append(f"{LIBRARY}/report/figures.py", STATEMENT)
    assert project.planned() == {("figures", ""), ("report", ""), ("all", "")}


def test_another_rubric_reruns_judging(project: Project) -> None:
    project.append("resources/rubrics/formula.md", "\nOne more sentence.\n")
    assert project.planned() == jobs_of(ALL_RUNS, "judge") | JUDGE_TEST | ENDS


def test_other_corrupted_replies_rerun_only_the_test_of_the_judges(project: Project) -> None:
    project.configure({"reliability": {"replies": 3}})
    expected = {("corrupt_replies", "tiny/own"), ("score_corruptions", "tiny/own"), *JUDGE_TEST}
    assert project.planned() == expected | ENDS - {
        (r, "") for r in ("aggregate", "claims", "paper_tables", "figures")
    }


def test_how_judges_are_asked_reruns_nothing(project: Project) -> None:
    project.configure({"verdict_store": "elsewhere"})
    assert project.planned() == set()


def test_touching_code_reruns_nothing(project: Project) -> None:
    """A checkout gives every file a new time; content decides."""
    for file in [
        *(project.folder / "src").rglob("*.py"),
        *(project.folder / "workflow").rglob("*.py"),
    ]:
        file.touch()
    assert project.planned() == set()


def test_weights_that_are_not_at_hand_are_not_fetched_for_a_page(project: Project) -> None:
    """Results copied from a cluster to a laptop."""
    for folder in ("resources/models", "resources/datasets", "tiny"):
        shutil.rmtree(project.folder / folder)
    project.configure({"title": "another name"})
    assert project.planned() == PAGE
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    page = (project.folder / "results/report.html").read_text()
    assert "another name" in page
    cells = json.loads(re.search(r'id="cells">(.*?)</script>', page)[1])
    assert all(found["tokens"] for found in cells["conversations"].values())


def test_a_model_folder_copied_without_times_reruns_nothing(project: Project) -> None:
    folder = project.folder / "resources/models/tiny"
    shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    assert project.planned() == set()


def test_a_project_copied_without_times_reruns_nothing(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert Project(tmp_path / "copy").planned() == set()


@pytest.fixture
def clone(fresh: Project, finished: Project, tmp_path: Path) -> Project:
    """A new clone with the artifacts of a finished run, in no order of time and without records."""
    project = fresh.copy(tmp_path / "clone")
    shutil.copytree(finished.folder / "results", project.folder / "results", symlinks=True)
    moments = random.Random(0)
    for file in sorted((project.folder / "results").rglob("*")):
        moment = time.time_ns() - moments.randrange(10**15)
        os.utime(file, ns=(moment, moment))
    return project


def test_artifacts_in_a_new_clone_are_taken_as_they_are(clone: Project) -> None:
    assert clone.planned() == set()
    assert clone.planned() == set(), "the second look sees what the first did"


def test_in_a_new_clone_what_the_configuration_would_not_make_is_made(clone: Project) -> None:
    """Today's copy says sinks 64, the artifacts were made with 4."""
    clone.configure({"policies": {"streaming": {"kind": "streaming_llm", "sinks": 64}}})
    runs = {f"tiny/own/streaming/{m}/000" for m in (STALE, REROTATED)}
    planned = clone.planned()
    assert planned - {("fetch_model", "tiny")} >= jobs_of(runs, *WHOLE) | ENDS
    done = clone.snakemake("-n")
    assert "sinks 4, this configuration says 64" in done.stdout + done.stderr
    clone.configure({})
    assert clone.planned() == set(), "back to what they were made with"


def test_tables_are_not_made_of_artifacts_of_another_configuration(project: Project) -> None:
    """Snakemake was made to look at times only."""
    project.configure({"policies": {"streaming": {"kind": "streaming_llm", "sinks": 64}}})
    (project.folder / "results/tables/turns.parquet").unlink()
    done = project.snakemake("--rerun-triggers", "mtime")
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "4 of 12 artifacts are not what this configuration and code would make" in output
    assert "it was made with other settings" in output and "make verify" in output
    assert not (project.folder / "results/tables/turns.parquet").exists()
