"""Moves files that `verify` found wrong out of a results folder; nothing is deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from kvfidelity.errors import UserError
from kvfidelity.pipeline.verify import Finding, State

#: A missing file cannot be moved, and what was fetched is replaced by the next run.
MOVED = frozenset(State) - {State.MISSING, State.CHANGED}
#: A few such files are expected; many mean that the reader is wrong, not the files.
SUSPECT = frozenset({State.DAMAGED, State.MISPLACED})
#: Without `force` at most this share of all files is moved, or this number if that is more.
MAX_SHARE = 0.05
MAX_NUMBER = 5


def move_aside(
    findings: Sequence[Finding], results: Path, *, files: int, force: bool = False
) -> tuple[int, Path]:
    """Move what is wrong into a new folder next to `results`, under the same relative path.

    Args:
        files: number of files in the results folder.
        force: move them even if they are many.

    Returns:
        The number of moved files, and the folder.

    Raises:
        UserError: too many files are wrong for damage to be likely; nothing was moved.
    """
    suspect = sum(finding.state in SUSPECT for finding in findings)
    if not force and suspect > max(MAX_NUMBER, MAX_SHARE * files):
        raise UserError(
            f"{suspect} of {files} files look damaged or misplaced, more than {MAX_SHARE:.0%}: "
            "likely they are whole, and another version of this code or of polars (here "
            f"{pl.__version__}) wrote them; nothing was moved; if they really are damaged, add "
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
    """A folder that does not exist yet."""
    results = results.absolute()
    named = results.with_name(f"{results.name}.removed") / time.strftime("%Y-%m-%dT%H-%M-%S")
    folder, further = named, 1
    while folder.exists():
        further += 1
        folder = named.with_name(f"{named.name}-{further}")
    return folder
