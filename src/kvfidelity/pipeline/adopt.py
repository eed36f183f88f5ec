"""Sets the modification times of results that have no records of Snakemake.

If Snakemake has no record of a file, it compares modification times, and copying, cloning or
unpacking changes those. So files without a record are dated in the order in which the workflow
makes them. A file whose metadata differs from what the configuration would make is dated before all
others: Snakemake then plans exactly such files, and the files made from them.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvfidelity.errors import UserError
from kvfidelity.pipeline.staleness import Expectations
from kvfidelity.pipeline.timestamps import LONG_AGO
from kvfidelity.records.grid import TOKENIZER

#: Which files were dated, and to which time; next to Snakemake's records.
DATES_FILE = Path(".snakemake/kvfidelity-adopted.json")
RECORDS = Path(".snakemake/metadata")
#: Stages in the order in which they are made; files of other stages are not dated.
STAGES = (
    "dialogues",
    "corruptions",
    "checks",
    "generate",
    "metrics",
    "judge_batches",
    "judge",
    "comparisons",
    "reliability",
    "tables",
    "figures",
    "report.html",
)
#: Tables that are made from other tables.
LATER_TABLES = ("reliability", "comparisons", "costs", "claims")
#: Tables that are written with the page.
REPORT_TABLES = ("jobs",)
LATER_ENDINGS = (".md", ".tex")
STEP_NS = 10**6
#: Outputs that are folders, and how Snakemake dates them.
FOLDERS = (TOKENIZER,)
TIMESTAMP = ".snakemake_timestamp"


@dataclass
class Adopted:
    """Files without a record: how many are up to date; which are not, and why; how many are new."""

    current: int = 0
    new: int = 0
    stale: list[tuple[Path, str]] = field(default_factory=list)

    def __str__(self) -> str:
        count = self.current + len(self.stale)
        text = f"{count} files in the results were not made here"
        if not self.stale:
            return f"{text}; by their metadata they are up to date"
        path, reason = self.stale[0]
        return f"{text}; {len(self.stale)} of them are made again, such as {path}: {reason}"


def adopt(expected: Expectations, results: Path) -> Adopted | None:
    """Date files that have no record; None if there is nothing new to say of them.

    A file keeps the time that it was given until it is made again or becomes stale.
    """
    # With `--persistence-backend db` the records are in a database, which is not read here.
    if not results.is_dir() or (RECORDS.with_suffix(".db")).exists():
        return None
    known = set(_recorded())
    files = [
        (rank, path)
        for rank, path in _ranked(results)
        # If an output is a folder, only the folder has a record.
        if known.isdisjoint(map(str, (path, *path.parents)))
    ]
    if not files:
        return None
    known_dates = _read_dates()
    found, now = Adopted(), time.time_ns()
    dates: dict[str, int] = {}
    for rank, path in sorted(files):
        try:
            reason = expected.stale(path) if path.suffix == ".parquet" else None
        except UserError as error:
            reason = str(error)
        # Kept for stale files too: the configuration may be changed back.
        found.new += str(path) not in known_dates
        moment = dates[str(path)] = known_dates.get(str(path), now - STEP_NS * (100 - rank))
        if reason:
            found.stale.append((path, reason))
            moment = LONG_AGO
        else:
            found.current += 1
        _date(path, moment)
    DATES_FILE.parent.mkdir(exist_ok=True)
    # Those of other runs, which lie in other folders, are kept.
    DATES_FILE.write_text(json.dumps(known_dates | dates))
    return found if found.new or found.stale else None


def _recorded() -> Iterator[str]:
    """The files that Snakemake has a record of: their paths are the records' names, in base64."""
    for folder, _, names in os.walk(RECORDS):
        parts = [part.removeprefix("@") for part in Path(folder).relative_to(RECORDS).parts]
        for name in names:
            try:
                yield base64.urlsafe_b64decode("".join([*parts, name])).decode()
            except ValueError:
                continue


def _ranked(results: Path) -> Iterator[tuple[int, Path]]:
    for rank, stage in enumerate(STAGES):
        top = results / stage
        for path in [top] if top.is_file() else top.rglob("*"):
            # A folder that is an output has the time of a hidden file in it, or its own.
            output = path.is_file() and not path.name.startswith(".")
            if output or path.name in FOLDERS or path.name == TIMESTAMP:
                yield 2 * rank + _later(path) if stage == "tables" else 2 * rank, path


def _later(table: Path) -> int:
    """How many steps after the first tables a table is made."""
    if table.stem in REPORT_TABLES:
        return 2 * len(STAGES)
    return int(table.stem in LATER_TABLES or table.suffix in LATER_ENDINGS)


def _date(path: Path, moment: int) -> None:
    if path.lstat().st_mtime_ns != moment:
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


def _read_dates() -> dict[str, int]:
    try:
        known: dict[str, int] = json.loads(DATES_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return known
