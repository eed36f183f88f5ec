"""Notes in an artifact's metadata: its input files, and its job's seconds and memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from kvfidelity.wheels import file_sha256

#: What the note calls all inputs together.
ALL = "artifacts"
#: Prefix of the notes that name a package's version.
VERSION = "version."
#: When a job ended, ISO 8601 in UTC; no content digest covers it.
MADE = "made"
#: What a job took of the process that did it; no content digest covers these notes.
WALL, CPU = "worker_wall_s", "worker_cpu_s"
PEAK, BATCH_SIZE = "worker_peak_rss_bytes", "worker_batch_size"


def input_notes(**files: Path) -> dict[str, str]:
    """The note of the files that an artifact is made from."""
    digests = {name: input_digest(file) for name, file in files.items() if file.is_file()}
    return {"inputs": json.dumps(digests, sort_keys=True)} if digests else {}


def input_digest(path: Path) -> str:
    """The content digest of an artifact, or the SHA-256 of any other file; 16 hex digits.

    Raises:
        UserError: an artifact that is missing or damaged.
    """
    if path.suffix == ".parquet":
        # Here, for the Snakefile imports this module and no polars.
        from kvfidelity.records.artifacts import read_metadata

        return read_metadata(path).get("digest", "")
    return file_sha256(path)[:16]


def note_of_all(digests: Iterable[str]) -> dict[str, str]:
    """The same note with one digest over those of many artifacts, in the order given."""
    together = hashlib.sha256()
    for digest in digests:
        together.update(digest.encode())
    return {"inputs": json.dumps({ALL: together.hexdigest()[:16]})}
