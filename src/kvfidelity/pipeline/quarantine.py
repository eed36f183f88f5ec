"""Files that verify found wrong, moved out of a results folder: nothing is deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from kvfidelity.errors import UserError
from kvfidelity.pipeline.verify import Finding, State

#: What is missing is made by Snakemake when asked for.
MOVED = frozenset(State) - {State.MISSING}
#: Of these few are expected. Many mean that the reader is wrong, not the files.
SUSPECT = frozenset({State.DAMAGED, State.MISPLACED})
#: How many of them are moved without `force`: a share of all files, but always a handful.
SHARE = 0.05
HANDFUL = 5


def move_aside(
    findings: Sequence[Finding], results: Path, *, files: int, force: bool = False
) -> tuple[int, Path]:
    """Move what is wrong into a new folder next to `results`, under the same relative path.

    Args:
        files: how many files the results folder holds.
        force: move them however many they are.

    Returns:
        How many files were moved, and the folder.

    Raises:
        UserError: too many are wrong for damage to be likely; nothing was moved.
    """
    suspect = sum(finding.state in SUSPECT for finding in findings)
    if not force and suspect > max(HANDFUL, SHARE * files):
        raise UserError(
            f"{suspect} of {files} files look damaged or misplaced, more than {SHARE:.0%}: likely "
            "they are whole, and another version of this code or of polars (here "
            f"{pl.__version__}) wrote them; nothing was moved; if they are damaged indeed, add "
            "--force: make verify ARGS='--remove --force'"
        )
    wrong = [finding.path for finding in findings if finding.state in MOVED]
    folder = _new_folder(results)
    for path in wrong:
        target = folder / path.relative_to(results)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    return len(wrong), folder


def _new_folder(results: Path) -> Path:
    """Where no earlier call has moved anything; made with its first file."""
    place = results.absolute()
    named = place.with_name(f"{place.name}.removed") / time.strftime("%Y-%m-%dT%H-%M-%S")
    folder, further = named, 1
    while folder.exists():
        further += 1
        folder = named.with_name(f"{named.name}-{further}")
    return folder
