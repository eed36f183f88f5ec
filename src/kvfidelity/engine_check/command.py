"""`kvfidelity check`: is an engine's eviction right?"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from kvfidelity.engine_check.answers import read_answers
from kvfidelity.engine_check.bookkeeping import CORRECT, MODES
from kvfidelity.engine_check.message import message
from kvfidelity.engine_check.probes import ProbeSet, read_probe_set
from kvfidelity.engine_check.verdict import Verdict, judge

#: Exit statuses; 2 is an error in the input.
RIGHT, WRONG, UNDECIDED = 0, 1, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvfidelity check`."""
    parser.add_argument("answers", type=Path, help="the answers, JSON Lines or Parquet")
    parser.add_argument("--probes", type=Path, help="the probe set that was answered")
    parser.add_argument(
        "--model",
        type=Path,
        help="the model's folder, if the answers are of runs whose keep sets the engine chose",
    )
    parser.add_argument(
        "--expect",
        nargs="+",
        choices=MODES,
        default=list(CORRECT),
        help="modes that pass (default: %(default)s)",
    )
    parser.add_argument("--figure", type=Path, help="where to write a figure, .svg")
    parser.add_argument("--json", type=Path, help="where to write the verdict as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the verdict; returns the exit status.

    Raises:
        UserError: an input is missing or malformed.
    """
    probe_set = _probe_set(options)
    verdict = judge(read_answers(options.answers, probe_set), probe_set, options.expect)
    _print(message(verdict))
    if options.json:
        from kvfidelity.atomic_files import write_json

        write_json(options.json, asdict(verdict) | {"passes": verdict.passes(options.expect)})
    if options.figure:
        from kvfidelity.engine_check.figure import write_figure

        write_figure(verdict, options.figure)
    return exit_status(verdict, options.expect)


def _print(text: str) -> None:
    """Print, also if the reader has closed the pipe (`| head -1`): the exit status still counts."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_status(verdict: Verdict, expected: list[str]) -> int:
    """0 if the engine implements an expected mode, 1 if not, 3 if the answers do not decide it."""
    if verdict.passes(expected):
        return RIGHT
    return WRONG if verdict.decided else UNDECIDED


def _probe_set(options: argparse.Namespace) -> ProbeSet:
    from kvfidelity.errors import UserError

    if (options.probes is None) == (options.model is None):
        raise UserError(
            "give --probes PROBES for answers to a probe set, or --model FOLDER for runs whose "
            "keep sets the engine chose"
        )
    if options.probes is not None:
        return read_probe_set(options.probes)
    from kvfidelity.engine_check.replay import replayed

    return replayed(options.answers, options.model)
