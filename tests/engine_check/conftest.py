"""A small model with sharp attention, its probe set, and texts that probes are made of."""

from __future__ import annotations

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.make import make_probe_set
from kvfidelity.engine_check.probes import ProbeSet
from kvfidelity.engine_check.schedules import Sizes
from tests.models.tiny import tiny_llama, tiny_tokenizer

#: The long conversation goes beyond the trained window, 512 tokens. Each survivor of the repeated
#: evictions sees all 40 of them.
SIZES = Sizes(
    short=63,
    medium=319,
    long=519,
    short_scored=48,
    medium_scored=64,
    long_scored=32,
    every=2,
    repeats=40,
)


@pytest.fixture(scope="session")
def engine() -> Engine:
    model = tiny_llama()
    with torch.no_grad():  # wide enough that attention is not uniform
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return Engine.from_model(model, tiny_tokenizer())


@pytest.fixture(scope="session")
def dialogues() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 260, (400,), generator=generator).tolist() for _ in range(3)]


@pytest.fixture(scope="session")
def probe_set(engine: Engine, dialogues: list[list[int]]) -> ProbeSet:
    return make_probe_set(engine, dialogues, SIZES, {"name": "tiny"})
