"""Checks that a model's files are those that were fetched: a flipped bit loads silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kvfidelity.errors import UserError
from kvfidelity.wheels import file_sha256

PROVENANCE = "provenance.json"
#: Loss of each step of a model that was trained here: the one file that its base lacks.
LOSS_CURVE = "training.json"
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf")


def file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 in hex of each file but the provenance, by name."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    return {file.name: file_sha256(file) for file in files if file.name != PROVENANCE}


def differ_in_weights_alone(one: Path, other: Path) -> bool:
    """Whether two models have the same configuration and tokenizer, byte by byte."""
    return _digests_of_the_rest(one) == _digests_of_the_rest(other)


def _digests_of_the_rest(directory: Path) -> dict[str, str]:
    return {
        file.name: file_sha256(file)
        for file in directory.iterdir()
        if file.is_file() and not _is_weights(file) and file.name not in (PROVENANCE, LOSS_CURVE)
    }


def _is_weights(file: Path) -> bool:
    return file.suffix in WEIGHTS or file.name.endswith(".index.json")


def copy_without_weights(directory: Path, target: Path) -> None:
    """Copy a model's configuration and tokenizer, which the report needs.

    Args:
        target: a folder; one that exists is replaced.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted(directory.iterdir()):
        if file.is_file() and not _is_weights(file) and file.name != PROVENANCE:
            shutil.copyfile(file, target / file.name)


def check_files(directory: Path) -> None:
    """Compare a model's files with its provenance; a directory without one is taken as it is.

    Reads every file once, at the speed of the disk or about 1 GB/s.

    Raises:
        UserError: a file is missing or is not what was fetched.
    """
    provenance = directory / PROVENANCE
    if not provenance.is_file():
        return
    try:
        known = json.loads(provenance.read_text(encoding="utf-8")).get("files", {})
    except ValueError:
        raise _corrupt_file(provenance, "not JSON") from None
    for name, digest in known.items():
        file = directory / name
        if not file.is_file():
            raise _corrupt_file(file, "it is missing")
        if file_sha256(file) != digest:
            raise _corrupt_file(file, "its SHA-256 is not what was fetched")


def _corrupt_file(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged ({reason}): delete the model's folder and run again")
