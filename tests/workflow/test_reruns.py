"""After a real run and a real edit, a real dry run names exactly the affected jobs."""

from __future__ import annotations

from typing import Any

import pytest

from .project import Job, Project

STALE, REROTATED = "stale/small/0", "rerotated/small/0"
ENDS = {(rule, "") for rule in ("aggregate", "appraise", "claims", "figures", "report", "all")}
TRIAL = {("trial", "offline/tiny/own")}
ALL_RUNS = {
    "tiny/own/baseline/original/none/0/000",
    *(f"tiny/own/{p}/{m}/000" for p in ("random", "streaming") for m in (STALE, REROTATED)),
}


def jobs_of(runs: set[str], *stages: str) -> set[Job]:
    named = {(stage, run) for run in runs for stage in stages if stage != "judge"}
    return named | {("judge", f"offline/{run}") for run in runs if "judge" in stages}


WHOLE = ("generate", "measure", "judge")


def test_a_finished_run_has_nothing_to_do(finished: Project) -> None:
    assert (finished.folder / "results/report.html").stat().st_size > 10_000
    assert finished.planned() == set()


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
            {("report", ""), ("all", "")},
            id="renaming the run writes the page anew",
        ),
        pytest.param({"report": {"resamples": 101}}, ENDS, id="statistics rerun the tables"),
        pytest.param(
            {"policies": {"random": {"keep_ratio": 0.9, "kind": "random"}}},
            set(),
            id="the order of keys means nothing",
        ),
        pytest.param(
            {"session": {"prefix_memory": "1GiB", "lanes": 4}},
            set(),
            id="memory for prefixes and lanes mean nothing",
        ),
        pytest.param(
            {"session": {"prefix_disk": "1GiB"}}, set(), id="disk for prefixes means nothing"
        ),
    ],
)
def test_a_change_of_the_configuration(
    project: Project, change: dict[str, Any], expected: set[Job]
) -> None:
    project.configure(change)
    assert project.planned() == expected


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("kvfidelity/cache/kernels.py", WHOLE),
        ("kvfidelity/session/turns.py", WHOLE),
        ("kvfidelity/metrics/integrity.py", WHOLE),
        ("kvfidelity/metrics/text.py", ("measure", "judge")),
        ("kvfidelity/judge/offline.py", ("judge",)),
        ("kvfidelity/analysis/statistics.py", ()),
        ("kvfidelity/worker/client.py", None),
        ("kvfidelity/cli.py", None),
    ],
)
def test_a_change_of_code_reruns_its_stage_and_what_follows(
    project: Project, file: str, stages: tuple[str, ...] | None
) -> None:
    path = project.folder / "workflow/scripts" / file
    path.write_text(path.read_text() + "\n# changed\n")
    expected = set() if stages is None else jobs_of(ALL_RUNS, *stages) | ENDS
    # The test of the judges is touched by what touches their verdicts.
    expected |= TRIAL if stages else set()
    expected |= {("likelihood", "tiny/own")} if stages == WHOLE else set()
    assert project.planned() == expected


def test_a_new_schema_version_plans_every_job_that_writes_artifacts(project: Project) -> None:
    """None of them could read what the others wrote before."""
    name = "workflow/scripts/kvfidelity/schema_version.py"
    project.edit(name, "SCHEMA_VERSION = 1", "SCHEMA_VERSION = 2")
    place = "tiny/own"
    pools = {(rule, place) for rule in ("extract_dialogues", "lengths", "plant", "likelihood")}
    assert project.planned() == jobs_of(ALL_RUNS, *WHOLE) | pools | TRIAL | ENDS


def test_a_plot_does_not_rerun_a_table(project: Project) -> None:
    path = project.folder / "workflow/scripts/kvfidelity/analysis/figures.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert project.planned() == {("figures", ""), ("report", ""), ("all", "")}


def test_another_rubric_reruns_judging(project: Project) -> None:
    path = project.folder / "resources/rubrics/offline.md"
    path.write_text(path.read_text() + "\nOne more sentence.\n")
    assert project.planned() == jobs_of(ALL_RUNS, "judge") | TRIAL | ENDS


def test_other_planted_replies_rerun_only_the_test_of_the_judges(project: Project) -> None:
    project.configure({"reliability": {"replies": 3}})
    planted = {("plant", "tiny/own"), ("likelihood", "tiny/own"), *TRIAL}
    assert project.planned() == planted | ENDS - {
        (r, "") for r in ("aggregate", "claims", "figures")
    }


def test_how_judges_are_asked_reruns_nothing(project: Project) -> None:
    project.configure({"judges": {"offline": {"concurrency": 3}}, "verdict_store": "elsewhere"})
    assert project.planned() == set()


def test_touching_code_reruns_nothing(project: Project) -> None:
    """A checkout gives every file a new time; content decides."""
    for file in (project.folder / "workflow").rglob("*.py"):
        file.touch()
    assert project.planned() == set()
