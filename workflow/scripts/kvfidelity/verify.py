"""Whether the files of a results folder are whole, unchanged since written, and current."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kvfidelity.artifacts import digest, read_metadata, read_parquet
from kvfidelity.errors import UserError
from kvfidelity.fingerprint import stage_fingerprint
from kvfidelity.schema_version import SCHEMA_VERSION

#: Kinds whose files are not named after them; a stage that has no line is not fingerprinted.
KINDS = {"pool": "dialogues"}
STAGES = dict.fromkeys(("turns", "evictions", "recall", "likelihood"), "generate")
TEMPORARY = re.compile(r"\..+\.tmp-(\d+)")
PLACE = ("model", "dataset", "policy", "positions", "threshold", "seed")


class State(StrEnum):
    """What can be wrong with a file."""

    DAMAGED = "damaged"
    """Cannot be read, or its content is not what its digest says."""
    MISPLACED = "misplaced"
    """Whole, but of another run or kind than its path says."""
    LEFT_OVER = "left over"
    """Half written by a process that is gone."""
    OUTDATED = "outdated"
    """Of an older schema version: this code cannot read it."""
    STALE = "stale"
    """Written by other code; the workflow writes it again if the configuration names it."""


@dataclass(frozen=True)
class Finding:
    """One file that is not as it should be."""

    path: Path
    state: State
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.path}: {self.reason}"


def verify(results: Path) -> tuple[int, list[Finding]]:
    """Check every artifact below a folder.

    The digest covers all columns but timings: a changed timing is found only if Parquet itself
    cannot read it.

    Returns:
        How many files were looked at, and what was found, in the order of paths.

    Raises:
        UserError: there is no such folder.
    """
    if not results.is_dir():
        raise UserError(f"{results} is no folder: name the one that the workflow wrote")
    files = sorted(path for path in results.rglob("*") if path.is_file())
    return len(files), [finding for path in files for finding in _look(path, results)]


def _look(path: Path, results: Path) -> Iterator[Finding]:
    if temporary := TEMPORARY.fullmatch(path.name):
        if not _runs(int(temporary[1])):
            yield Finding(path, State.LEFT_OVER, "its writer ended before it was complete")
    elif path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            yield Finding(path, State.DAMAGED, str(error))
    elif path.suffix == ".parquet":
        try:
            yield from _look_into(path, results)
        except UserError as error:
            yield Finding(path, State.DAMAGED, str(error).removeprefix(f"{path} is damaged "))


def _look_into(path: Path, results: Path) -> Iterator[Finding]:
    notes = read_metadata(path)
    kind = KINDS.get(path.stem, path.stem)
    if "digest" not in notes:
        yield Finding(path, State.MISPLACED, "not written by this workflow")
        return
    if notes["kind"] != kind:
        yield Finding(path, State.MISPLACED, f"holds {notes['kind']}, not {kind}")
        return
    if notes["schema_version"] != str(SCHEMA_VERSION):
        yield _other_version(path, notes["schema_version"])
        return
    if digest(read_parquet(path, kind=kind)) != notes["digest"]:
        yield Finding(path, State.DAMAGED, "its content is not what its digest says")
        return
    stage = STAGES.get(kind) if "code" in notes else None
    if stage and notes["code"] != stage_fingerprint(stage):
        yield Finding(path, State.STALE, f"written by other code of stage {stage}")
    if "spec" in notes:
        spec = json.loads(notes["spec"])
        meant = tuple(str(spec[name]) for name in PLACE)
        there = path.relative_to(results).parts[1 : 1 + len(PLACE)]
        if meant != there:
            yield Finding(path, State.MISPLACED, f"is the run {'/'.join(meant)}")


def _other_version(path: Path, version: str) -> Finding:
    reason = f"schema version {version}, this code writes {SCHEMA_VERSION}"
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        return Finding(path, State.STALE, f"{reason}: read it with the newer code")
    return Finding(path, State.OUTDATED, reason)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
