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

from kvfidelity.worker.job import Hello, Request

#: Relative to the workflow's folder.
FOLDER = Path(".snakemake/kvfidelity-finished")
OUTPUTS = ("turns", "evictions", "recall")
NOTE = "sha256.json"


class Finished:
    """The folder of finished runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, hello: Hello, request: Request) -> bool:
        """Put a finished run's files in place, if there is one and it is whole."""
        kept = self._folder / _key(hello, request)
        try:
            known = json.loads((kept / NOTE).read_text())
        except (OSError, ValueError):
            return False
        if known != _digests({name: kept / name for name in OUTPUTS}):
            shutil.rmtree(kept)
            return False
        for name, place in _outputs(request).items():
            _link(kept / name, place)
        return True

    def keep(self, hello: Hello, request: Request) -> None:
        """Keep a run that has just finished."""
        kept = self._folder / _key(hello, request)
        kept.mkdir(parents=True, exist_ok=True)
        for name, place in _outputs(request).items():
            _link(place, kept / name)
        # Last: a run without it was cut short and is none.
        temporary = kept / f".{NOTE}.{os.getpid()}"
        temporary.write_text(json.dumps(_digests(_outputs(request))))
        temporary.replace(kept / NOTE)

    def forget(self) -> None:
        """Drop all that is kept: whoever deletes an artifact later wants it made anew."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _key(hello: Hello, request: Request) -> str:
    """Digest of what a run depends on."""
    about = {name: getattr(hello, name) for name in ("model_revision", "dtype", "fingerprint")}
    told = hashlib.sha256(json.dumps(about | asdict(request), sort_keys=True).encode())
    told.update(Path(request.pool).read_bytes())
    return told.hexdigest()[:32]


def _outputs(request: Request) -> dict[str, Path]:
    return {name: Path(getattr(request, name)) for name in OUTPUTS}


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
