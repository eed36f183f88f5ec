"""What a training depends on: the `adapter` entry of a model. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained; config/README.md describes the keys.

    The defaults are the schema's, so there are none here.
    """

    arm: str
    seed: int
    steps: int
    batch: int
    rank: int
    learning_rate: float
    loss: str
    retention: tuple[float, float]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Recipe:
        """From a checked `adapter` entry, whose other keys say of what model and on what data."""
        chosen = {item.name: entry[item.name] for item in fields(cls)}
        return cls(**chosen | {"retention": tuple(entry["retention"])})
