"""Whether the files of a results folder are whole, unchanged since written, and current."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import TEMPORARY
from kvfidelity.errors import UserError
from kvfidelity.pipeline.code_digest import stage_digest
from kvfidelity.pipeline.run_folders import named_runs
from kvfidelity.pipeline.sources import changed_sources
from kvfidelity.pipeline.staleness import Expectations
from kvfidelity.records.artifacts import digest, read_metadata, read_parquet
from kvfidelity.records.grid import CELL_FIELDS, cells
from kvfidelity.records.notes import VERSION
from kvfidelity.records.schema_version import SCHEMA_VERSION

#: Kinds whose files are not named after them.
KIND_OF_FILE = {"pool": "dialogues"}
#: The stage whose code made a folder's files, by folder. Folders without a line are not compared.
STAGE_OF_KIND = {
    "dialogues": "dialogues",
    "generate": "generate",
    "metrics": "measure",
    "judge": "judge",
    "comparisons": "judge",
}


class State(StrEnum):
    """What can be wrong with a file."""

    DAMAGED = "damaged"
    """Cannot be read, or its content is not what its digest says."""
    MISPLACED = "misplaced"
    """Whole, but its run or kind is not the one of its path."""
    LEFT_OVER = "left over"
    """Half written by a process that has ended."""
    OUTDATED = "outdated"
    """Written with an older schema version; this code cannot read it."""
    STALE = "stale"
    """Not what this configuration and this code would make."""
    MISSING = "missing"
    """Others were made from it and exist, so Snakemake does not make it again by itself."""
    CHANGED = "changed"
    """A fetched model or dataset that is not what the configuration points to today."""


@dataclass(frozen=True)
class Finding:
    """One file that is not as it should be."""

    path: Path
    state: State
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.path}: {self.reason}"


def verify(results: Path, settings: Mapping[str, Any] | None = None) -> tuple[int, list[Finding]]:
    """Check every artifact of a run's folder; the folders of other runs in it are not looked at.

    Args:
        settings: a checked configuration; artifacts of its grid are compared with what it would
            make. Without it only their code is.

    The digest covers all columns but timings: a changed timing is found only if Parquet itself
    cannot read it.

    Returns:
        The number of files, and the findings in the order of paths.

    Raises:
        UserError: the folder does not exist.
    """
    if not results.is_dir():
        raise UserError(f"{results} is no folder: name the one that the workflow wrote")
    others = [results / name for name in named_runs(results)]
    files = sorted(
        path
        for path in results.rglob("*")
        if path.is_file() and not any(path.is_relative_to(other) for other in others)
    )
    expected = Expectations(settings, results) if settings else None
    found = [finding for path in files for finding in _check_file(path, results, expected)]
    return len(files), [*found, *_missing(settings, results), *_changed(settings)]


def other_versions(results: Path) -> Counter[tuple[str, str, str]]:
    """Number of artifacts that were made with another version of a package than is installed.

    Returns:
        Counts by (package, version it was made with, installed version).
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for path in sorted((results / "generate").rglob("*.parquet")):
        with contextlib.suppress(UserError):  # damaged: named by `verify`
            notes = read_metadata(path)
            for note in (note for note in notes if note.startswith(VERSION)):
                package = note.removeprefix(VERSION)
                if notes[note] != (here := _installed(package)):
                    counts[package, notes[note], here] += 1
    return counts


@cache
def _installed(package: str) -> str:
    if package == "python":
        return platform.python_version()
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _missing(settings: Mapping[str, Any] | None, results: Path) -> Iterator[Finding]:
    """Missing dialogues of existing runs."""
    if settings is None or settings["merge"]:
        return
    for model, dataset in sorted({(cell.model, cell.dataset) for cell in cells(settings)}):
        pool = results / "dialogues" / model / dataset / "pool.parquet"
        if not pool.is_file() and any((results / "generate" / model / dataset).rglob("*.parquet")):
            reason = f"runs were made from it; `snakemake {pool}` makes it again"
            yield Finding(pool, State.MISSING, reason)


def _changed(settings: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Models and datasets whose source has changed since they were fetched."""
    if settings is None or settings["merge"]:
        return
    for record, reason in changed_sources(settings):
        yield Finding(record, State.CHANGED, f"{reason}; `snakemake` fetches it again")


def _check_file(path: Path, results: Path, expected: Expectations | None) -> Iterator[Finding]:
    if temporary := TEMPORARY.fullmatch(path.name):
        if not _is_running(int(temporary[1])):
            yield Finding(path, State.LEFT_OVER, "its writer ended before it was complete")
    elif path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            yield Finding(path, State.DAMAGED, str(error))
    elif path.suffix == ".parquet":
        try:
            yield from _check_parquet(path, results, expected)
        except UserError as error:
            yield Finding(path, State.DAMAGED, str(error).removeprefix(f"{path} is damaged "))


def _check_parquet(path: Path, results: Path, expected: Expectations | None) -> Iterator[Finding]:
    metadata = read_metadata(path)
    kind = KIND_OF_FILE.get(path.stem, path.stem)
    if "digest" not in metadata:
        yield Finding(path, State.MISPLACED, "not written by this workflow")
        return
    if metadata["kind"] != kind:
        yield Finding(path, State.MISPLACED, f"holds {metadata['kind']}, not {kind}")
        return
    if metadata["schema_version"] != str(SCHEMA_VERSION):
        yield _other_version(path, metadata["schema_version"])
        return
    if digest(read_parquet(path, kind=kind)) != metadata["digest"]:
        yield Finding(path, State.DAMAGED, "its content is not what its digest says")
        return
    stage = STAGE_OF_KIND.get(path.relative_to(results).parts[0])
    if stage and "code" in metadata and metadata["code"] != stage_digest(stage):
        yield Finding(path, State.STALE, f"it was made by other code of stage {stage}")
    elif expected and (reason := expected.stale(path)):
        yield Finding(path, State.STALE, reason)
    if "spec" in metadata:
        spec = json.loads(metadata["spec"])
        identity = tuple(str(spec[name]) for name in CELL_FIELDS)
        found = path.relative_to(results).parts[1 : 1 + len(CELL_FIELDS)]
        if identity != found:
            yield Finding(path, State.MISPLACED, f"is the run {'/'.join(identity)}")


def _other_version(path: Path, written: str) -> Finding:
    reason = f"schema version {written}, this code writes {SCHEMA_VERSION}"
    if written.isdigit() and int(written) > SCHEMA_VERSION:
        return Finding(path, State.STALE, f"{reason}: read it with the newer code")
    return Finding(path, State.OUTDATED, reason)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
