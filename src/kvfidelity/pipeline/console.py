"""What a run says on the console: a plan, a line per finished run, faults, how to go on.

Snakemake describes each job in ten lines and counts steps, of which most take no time. With
`--verbose`, `--printshellcmds` or `--debug-dag` all that is written too. Its own log below
.snakemake/log has it always.

A logger plugin would have to be installed where Snakemake is; this handler comes with the
Snakefile.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from kvfidelity.pipeline.failures import Failures, last_line
from kvfidelity.pipeline.plan_message import GENERATE, duration
from kvfidelity.pipeline.planned_jobs import job_name
from kvfidelity.pipeline.run_progress import RunProgress

#: The command for the last line, if it was not typed as `snakemake ...`.
COMMAND_VARIABLE = "KVFIDELITY_COMMAND"
#: Rules with a job for each run; a line for each of them would say nothing new.
PER_RUN = frozenset({GENERATE, "measure", "judge", "compare_replies"})
#: Snakemake's messages that say nothing to who started a run, or that are said here better.
NOISE = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Complete log(s)",
    "Conda environments: ignored",
    "Elapsed time",
    "Exiting because a job execution failed",
    "Group jobs: inactive",
    "Reasons:",
    "RuleException:\nCalledProcessError",
    "Rules with provenance triggered jobs",
    "Removing output files of failed job",
    "Select jobs to execute",
    "Shutting down, this might take some time",
    "Singularity containers: ignored",
    "Some jobs were triggered by provenance information",
    "Using shell",
    "WorkflowError:\nAt least one job did not complete successfully",
)
#: Events of Snakemake that are messages; those of the others are shown here in another form.
MESSAGES = (None, "error")
#: Messages after which a run ends before it is done.
INTERRUPTED = ("Terminating processes on user request", "Will exit after finishing")
#: What Snakemake says if there is nothing to run.
COMPLETE = "Nothing to be done"
#: Said of files that another run made, which is said at the start.
WITHOUT_RECORD = re.compile(r"\d+ jobs have missing provenance/metadata")
DRY_RUN_HINT = "each job and its reason: the same command with --verbose"


class Console(logging.Handler):
    """A handler of Snakemake's log records.

    Args:
        stream: where to write.
        plan: gives the lines before the start, once the jobs are known.
        expected: gives the seconds of each run to do, once the jobs are known.
        alone: whether nothing else writes Snakemake's own messages.
        dry_run: whether nothing is run.
        progress: whether a line per run is wanted.
        command: what was typed.
        logs: gives the files that hold the log of the whole workflow.
        page: the report, which is named at the end.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        plan: Callable[[], str],
        expected: Callable[[], dict[str, float]],
        alone: bool,
        dry_run: bool,
        progress: bool,
        command: list[str] | str,
        logs: Callable[[], list[str]],
        page: Path,
    ) -> None:
        super().__init__(logging.INFO)
        self._stream, self._plan, self._expected = stream, plan, expected
        self._alone, self._dry_run, self._shows_progress = alone, dry_run, progress
        self._command, self._logs, self._page = command, logs, page
        self._jobs: dict[int, tuple[str, str, float]] = {}
        self._failures = Failures()
        self._progress: RunProgress | None = None
        self._began = time.monotonic()
        self._finished, self._interrupted, self._ended = 0, False, False
        self._complete = False

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record."""
        try:
            self._emit(record)
        except Exception:  # noqa: BLE001 - a message must not end a run
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = record.__dict__
        match fields.get("event"):
            case "run_info":
                self._starts()
            case "job_info" if not self._dry_run:
                name = job_name(fields["wildcards"])
                self._jobs[fields["jobid"]] = fields["rule_name"], name, time.monotonic()
                if fields["rule_name"] == GENERATE and self._progress:
                    self._progress.starts(time.monotonic())
            case "job_finished" if fields["job_id"] in self._jobs:
                self._finishes(*self._jobs[fields["job_id"]])
            case "job_error":
                _, name, _ = self._jobs.get(fields["jobid"], ("", "", 0.0))
                logs = [log.split(" (")[0] for log in fields["log"]]
                self._write(self._failures.add(fields["rule_name"], name, logs))
            case event if event in MESSAGES:
                self._message(record)

    def _message(self, record: logging.LogRecord) -> None:
        text = record.getMessage() if record.msg else ""
        self._interrupted |= text.startswith(INTERRUPTED)
        self._complete |= text.startswith(COMPLETE)
        noise = text.startswith(NOISE) or WITHOUT_RECORD.match(text)
        if self._alone and text and not noise:
            self._write(text)

    def _starts(self) -> None:
        if self._progress is None:
            self._progress = RunProgress(self._expected())
            self._write(self._plan())
            if self._dry_run and self._alone:
                self._write(DRY_RUN_HINT)

    def _finishes(self, rule: str, name: str, started: float) -> None:
        self._finished += 1
        now = time.monotonic()
        if rule == GENERATE and self._progress:
            line = self._progress.finishes(name, now)
        elif rule not in PER_RUN and rule != "all":
            line = f"{rule}{' ' + name if name else ''}: {duration(now - started)}"
        else:
            return
        if self._shows_progress:
            self._write(line)

    def close(self) -> None:
        """Write the last line; Snakemake closes its handlers when everything else is said."""
        if not self._ended and not self._dry_run:
            self._ended = True
            for line in self._failures.summary():
                self._write(line)
            if self._failures or self._interrupted:
                self._write(last_line(self._command, self._failures.logs(), self._logs()))
            elif self._shows_progress and (self._finished or self._complete):
                self._write_end()
        super().close()

    def _write_end(self) -> None:
        if self._finished:
            took = duration(time.monotonic() - self._began)
            self._write(f"done: {self._finished} jobs in {took}")
        if self._page.is_file():
            self._write(f"report: {self._page}")

    def _write(self, text: str | None) -> None:
        if text:
            self._stream.write(f"{text}\n")
            self._stream.flush()


def attach(
    workflow: Any,
    plan: Callable[[], str],
    expected: Callable[[], dict[str, float]],
    page: Path,
) -> None:
    """Write to the console what `Console` says, in place of what Snakemake would.

    Args:
        workflow: Snakemake's. plan, expected, page: as for `Console`.
    """
    settings, logger = workflow.output_settings, logging.getLogger("snakemake.logging")
    manager = workflow.logger_manager
    own = [handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"]
    asked_for_more = settings.verbose or settings.printshellcmds or settings.debug_dag
    # Who has chosen another logger gets that one.
    alone = bool(own) and not asked_for_more
    if alone:
        for handler in own:
            logger.removeHandler(handler)
    quiet = {str(getattr(part, "name", part)).lower() for part in settings.quiet or ()}
    typed = os.environ.get(COMMAND_VARIABLE)
    logger.addHandler(
        Console(
            sys.stdout if settings.stdout else sys.stderr,
            plan=plan,
            expected=expected,
            alone=alone,
            dry_run=settings.dryrun,
            progress=quiet.isdisjoint({"all", "progress"}),
            command=typed or ["snakemake", *sys.argv[1:]],
            page=page,
            logs=lambda: [os.path.relpath(Path(file)) for file in manager.get_logfile()],
        )
    )
