"""A line per run, and each fault once."""

from __future__ import annotations

import logging
from io import StringIO
from pathlib import Path

import pytest

from kvfidelity.pipeline.console import Console
from kvfidelity.pipeline.failures import Failures, last_line
from kvfidelity.pipeline.run_progress import RunProgress


def test_a_line_counts_runs_and_says_the_time_left() -> None:
    progress = RunProgress({"a": 10.0, "b": 10.0, "c": 20.0})
    progress.starts(100.0)
    # Ten expected seconds took twenty, so thirty take sixty.
    assert progress.finishes("a", 120.0) == "[1 of 3 runs] a, about 60 s left"
    assert progress.finishes("b", 140.0) == "[2 of 3 runs] b, about 40 s left"
    assert progress.finishes("c", 180.0) == "[3 of 3 runs] c"


def test_the_first_of_runs_that_are_computed_together_does_not_set_the_pace() -> None:
    progress = RunProgress({f"{number:03d}": 1.0 for number in range(204)})
    progress.starts(0.0)
    # Forty-eight runs take a minute and end together.
    for number in range(48):
        line = progress.finishes(f"{number:03d}", 60.0 + number / 10)
    assert line.endswith("about 3 min left")
    for number in range(48, 96):
        line = progress.finishes(f"{number:03d}", 120.0 + number / 10)
    assert line.endswith("about 2 min left")
    slow = RunProgress({f"{number:03d}": 1.0 for number in range(204)})
    slow.starts(0.0)
    assert slow.finishes("000", 300.0).endswith("about 17 h left")


def test_a_fault_of_many_jobs_is_said_once_and_others_apart(tmp_path: Path) -> None:
    failures, said = Failures(), []
    for number in range(92):
        log = tmp_path / f"{number}.log"
        log.write_text(
            f"loading\nTraceback\nerror: results/m/d/p/{number:03d}/turns is damaged: make room\n"
        )
        said.append(failures.add("generate", f"m/d/p/{number:03d}", [str(log)]))
    other = tmp_path / "other.log"
    other.write_text("Traceback\nValueError: out of ideas\n")
    said.append(failures.add("generate", "m/d/q/000", [str(other)]))
    said.append(failures.add("judge", "m", [str(tmp_path / "none.log")]))
    lines = [line for line in said if line]
    assert len(lines) == 3
    assert "error: results/m/d/p/000/turns is damaged" in lines[0] and "0.log" in lines[0]
    assert "ValueError: out of ideas" in lines[1]
    [summary] = failures.summary()
    assert summary.startswith("92 jobs failed alike: error: ")
    assert failures.logs()[:2] == [str(tmp_path / "0.log"), str(other)]
    line = last_line(["snakemake", "--cores", "2", "--configfile", "a b.yaml"], failures.logs(), [])
    assert "type: snakemake --cores 2 --configfile 'a b.yaml'" in line
    assert "other.log" in line and " and 91 more" in line


def console(stream: StringIO, alone: bool = True, page: Path = Path("nowhere")) -> Console:
    return Console(
        stream,
        plan=lambda: "the plan",
        expected=lambda: {"m/000": 1.0},
        alone=alone,
        dry_run=False,
        progress=True,
        command="make run",
        logs=lambda: ["whole.log"],
        page=page,
    )


def record(message: str | None, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, message, (), None)
    made.__dict__.update(fields)
    return made


@pytest.mark.parametrize("alone", [True, False])
def test_an_interrupted_run_ends_with_what_to_type(alone: bool) -> None:
    stream = StringIO()
    handler = console(stream, alone)
    handler.handle(record("Building DAG of jobs..."))
    handler.handle(record("Job stats: ...", event="run_info"))
    handler.handle(
        record(
            "", event="job_info", jobid=3, rule_name="generate", wildcards={"a": "m", "b": "000"}
        )
    )
    handler.handle(record("", event="job_finished", job_id=3))
    handler.handle(record("Terminating processes on user request, this might take some time."))
    handler.handle(record("a warning", logging.WARNING))
    handler.close()
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["the plan", "[1 of 1 runs] m/000"]
    assert lines[-1] == "to go on, type: make run   (logs to read: whole.log)"
    assert ("a warning" in lines) == alone, "Snakemake's own handler says it otherwise"
    assert "Building" not in stream.getvalue()


def test_a_run_that_is_done_or_was_done_names_its_report(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for there in (False, True):
        stream = StringIO()
        handler = console(stream, page=page)
        handler.handle(record("Nothing to be done (all requested files are present)."))
        handler.close()
        named = f"report: {page}" in stream.getvalue()
        assert named == there
        page.touch()
