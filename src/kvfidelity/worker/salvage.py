"""Finished runs of a scheduler's job that was killed before its end: taken up again, not repeated.

Snakemake hands a scheduler several runs as one job and, when that fails, deletes what all of them
made: it has not noted with which parameters, and would take them for up to date ever after. So each
run's files are linked into a folder beside Snakemake's own under a digest of all that they depend
on. The workflow empties the folder when it ends well.
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

from kvfidelity.worker.job import GenerateJob, WorkerConfig

#: Relative to the workflow's folder.
FOLDER = Path(".snakemake/kvfidelity-salvage")
OUTPUTS = ("turns", "evictions", "recall")
DIGESTS_FILE = "sha256.json"


class SalvagedRuns:
    """The folder of finished runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self, config: WorkerConfig, job: GenerateJob) -> bool:
        """Put a finished run's files in place, if there is one and it is whole."""
        kept = self._folder / _key(config, job)
        try:
            known = json.loads((kept / DIGESTS_FILE).read_text())
        except (OSError, ValueError):
            return False
        if known != _digests({name: kept / name for name in OUTPUTS}):
            shutil.rmtree(kept)
            return False
        for name, path in _outputs(job).items():
            _link(kept / name, path)
        return True

    def store(self, config: WorkerConfig, job: GenerateJob) -> None:
        """Keep a run that has just finished."""
        kept = self._folder / _key(config, job)
        kept.mkdir(parents=True, exist_ok=True)
        for name, path in _outputs(job).items():
            _link(path, kept / name)
        # Last: a run without it was cut short and is none.
        temporary = kept / f".{DIGESTS_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(_digests(_outputs(job))))
        temporary.replace(kept / DIGESTS_FILE)

    def clear(self) -> None:
        """Drop all that is kept: whoever deletes an artifact later wants it made anew."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _key(config: WorkerConfig, job: GenerateJob) -> str:
    """Digest of what a run depends on."""
    fields = {name: getattr(config, name) for name in ("model_revision", "dtype", "code_digest")}
    hasher = hashlib.sha256(json.dumps(fields | asdict(job), sort_keys=True).encode())
    hasher.update(Path(job.pool).read_bytes())
    return hasher.hexdigest()[:32]


def _outputs(job: GenerateJob) -> dict[str, Path]:
    return {name: Path(getattr(job, name)) for name in OUTPUTS}


def _digests(files: Mapping[str, Path]) -> dict[str, str] | None:
    try:
        contents = {name: file.read_bytes() for name, file in files.items()}
    except OSError:
        return None
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # renaming onto another name of the same file does nothing
