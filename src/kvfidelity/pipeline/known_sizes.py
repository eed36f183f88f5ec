"""Sizes of a model and of dialogues, as far as they are known when the workflow starts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kvfidelity.bounded_json import parse_json
from kvfidelity.errors import UserError
from kvfidelity.models.geometry import Geometry

#: A model about which nothing is known counts as large as Llama-3-8B.
DEFAULT_PARAMETERS = 8e9
DEFAULT_GEOMETRY = Geometry(layers=32, kv_heads=8, head_size=128, window=8192)
#: Tokens of a dialogue of unknown length.
DEFAULT_TOKENS = 16_000
#: A number of parameters in a name, such as "135M" in SmolLM2-135M-Instruct or "0.5b".
IN_NAME = re.compile(r"(?<![0-9.])(\d+(?:\.\d+)?)([MB])(?![a-zA-Z0-9])", re.IGNORECASE)


class ModelSize(NamedTuple):
    """Number of weights, and the sizes of its cache; `known` is false of a mere assumption."""

    parameters: float
    geometry: Geometry
    known: bool = True


def model_size(entry: Mapping[str, Any], folder: Path) -> ModelSize:
    """From a fetched model's folder; before it is there, from the configuration.

    That names a local folder, or the model's name states the number of its parameters: the name of
    its source, or that in the configuration, which is the folder's.

    Args:
        entry: the model's entry in the configuration.
    """
    if "adapter" in entry and not (folder / "config.json").is_file():
        adapter = entry["adapter"]
        return model_size(adapter["base_source"], folder.with_name(adapter["base"]))
    for place in (folder, Path(entry.get("path") or folder)):
        if (place / "config.json").is_file():
            return _read_model(place)
    names = (str(entry.get(key, "")) for key in ("id", "member", "path", "package"))
    found = IN_NAME.search(" ".join((*names, folder.name)))
    if found is None:
        return ModelSize(DEFAULT_PARAMETERS, DEFAULT_GEOMETRY, known=False)
    return ModelSize(float(found[1]) * {"M": 1e6, "B": 1e9}[found[2].upper()], DEFAULT_GEOMETRY)


def dialogue_tokens(dataset: Mapping[str, Any], manifest: Path, dialogue: int) -> int:
    """Tokens of a dialogue; before they are extracted, what the selection allows.

    Args:
        dataset: its entry in the configuration.
        manifest: of the extracted dialogues.
    """
    lengths = _lengths(manifest)
    if dialogue < len(lengths):
        return lengths[dialogue]
    return int(dataset.get("select", {}).get("max_tokens") or DEFAULT_TOKENS)


@lru_cache
def _read_model(folder: Path) -> ModelSize:
    """A folder's content does not change while a workflow runs."""
    try:
        counts = [_element_count(file) for file in folder.glob("*.safetensors")]
        return ModelSize(float(sum(counts)) or DEFAULT_PARAMETERS, Geometry.of(folder))
    except (OSError, ValueError, KeyError, TypeError, UserError):
        # Loading it will say what is wrong with it.
        return ModelSize(DEFAULT_PARAMETERS, DEFAULT_GEOMETRY, known=False)


def _element_count(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is no safetensors file")
        header = parse_json(handle.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name[0] != "_")


def _lengths(manifest: Path) -> list[int]:
    return _read_lengths(manifest, manifest.stat().st_mtime_ns) if manifest.is_file() else []


@lru_cache
def _read_lengths(manifest: Path, changed: int) -> list[int]:
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["tokens"])
    except (ValueError, KeyError, TypeError):
        return []
