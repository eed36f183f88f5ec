"""Finished runs of a cluster job that was killed are restored, not repeated.

Snakemake submits several runs as one cluster job. If that job fails, Snakemake deletes the outputs
of all its runs, because it has not recorded their parameters yet. So each finished run's files are
also linked into a folder next to Snakemake's own, under a digest of everything that they depend on.
The workflow empties the folder when it ends well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from kvfidelity.atomic_files import remove_leftovers, temporary_path
from kvfidelity.records.grid import GENERATED
from kvfidelity.worker.job import GenerateJob, WorkerConfig

#: Relative to the workflow's folder.
FOLDER = Path(".snakemake/kvfidelity-salvage")
DIGESTS_FILE = "sha256.json"


class SalvagedRuns:
    """The folder of finished runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self, config: WorkerConfig, job: GenerateJob) -> bool:
        """Link a finished run's files to the job's outputs; False if it is missing or corrupt."""
        kept = self._folder / _key(config, job)
        try:
            known = json.loads((kept / DIGESTS_FILE).read_text())
        except (OSError, ValueError):
            return False
        if known != _digests({name: kept / name for name in GENERATED}):
            shutil.rmtree(kept)
            return False
        for name, path in _outputs(job).items():
            remove_leftovers(path)
            _link(kept / name, path)
        return True

    def store(self, config: WorkerConfig, job: GenerateJob) -> None:
        """Link a finished run's outputs into the folder."""
        kept = self._folder / _key(config, job)
        kept.mkdir(parents=True, exist_ok=True)
        for name, path in _outputs(job).items():
            _link(path, kept / name)
        # Last, so that a run without this file is known to be incomplete.
        temporary = kept / f".{DIGESTS_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(_digests(_outputs(job))))
        temporary.replace(kept / DIGESTS_FILE)

    def clear(self) -> None:
        """Delete all: an artifact that is deleted later must be computed again."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _key(config: WorkerConfig, job: GenerateJob) -> str:
    """A digest of everything that a run depends on."""
    fields = {name: getattr(config, name) for name in ("model_revision", "dtype", "code_digest")}
    hasher = hashlib.sha256(json.dumps(fields | asdict(job), sort_keys=True).encode())
    hasher.update(Path(job.pool).read_bytes())
    return hasher.hexdigest()[:32]


def _outputs(job: GenerateJob) -> dict[str, Path]:
    return {name: Path(getattr(job, name)) for name in GENERATED}


def _digests(files: Mapping[str, Path]) -> dict[str, str] | None:
    try:
        contents = {name: file.read_bytes() for name, file in files.items()}
    except OSError:
        return None
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _link(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # renaming onto a link to the same file does nothing
