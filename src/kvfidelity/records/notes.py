"""Notes in an artifact's metadata: its input files, and its job's seconds and memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
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


def input_notes(**files: Path | Sequence[Path]) -> dict[str, str]:
    """The note of the files that an artifact is made from; several files have one digest."""
    digests = {
        name: input_digest(file) if isinstance(file, Path) else joint_digest(file)
        for name, file in files.items()
        if not isinstance(file, Path) or file.is_file()
    }
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


def joint_digest(paths: Iterable[Path]) -> str:
    """One digest of several files, in the order given; 16 hex digits.

    Raises:
        UserError: an artifact is missing or damaged.
    """
    return digest_of_digests(map(input_digest, paths))


def digest_of_digests(digests: Iterable[str]) -> str:
    """One digest of several, in the order given; 16 hex digits."""
    together = hashlib.sha256()
    for digest in digests:
        together.update(digest.encode())
    return together.hexdigest()[:16]
