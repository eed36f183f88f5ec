"""A training's checkpoint: one file, whole or absent, that belongs to one training."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvfidelity.atomic_files import replacing

NAME = "checkpoint.pt"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Checkpoint:
    """A training after `len(losses)` steps.

    identity: of what is trained, on what and how. losses: of each step, nats per reply token.
    adapter, optimizer: state dicts.
    """

    identity: str
    losses: list[float]
    adapter: dict[str, Any]
    optimizer: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint, at once or not at all."""
    content = io.BytesIO()
    torch.save(vars(checkpoint), content)
    data = content.getvalue()
    with replacing(folder / NAME) as temporary:
        temporary.write_bytes(hashlib.sha256(data).digest() + data)


def read_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """The folder's checkpoint; None if there is none, or it is damaged or of another training.

    Tensors are on the CPU.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    content = file.read_bytes()
    digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        print(f"{file} is damaged: the training starts from its first step")
        return None
    found = Checkpoint(**torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    if found.identity != identity:
        print(f"{file} is of another training: it is not used")
        return None
    return found
