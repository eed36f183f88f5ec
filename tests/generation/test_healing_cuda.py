"""Healings on a GPU: the same records as on a CPU, alone and in a batch with others, in fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.generation.run import Records
from tests.generation.test_cuda import on_gpu, same_records
from tests.generation.test_healing import HEALINGS, healed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]
__all__ = ["on_gpu"]


@pytest.mark.parametrize("healing", HEALINGS)
def test_a_healing_is_the_same_on_a_gpu(engine: Engine, on_gpu: Engine, healing: str) -> None:
    same_records(healed(engine, healing), healed(on_gpu, healing))


@pytest.mark.parametrize("healing", HEALINGS)
def test_a_healing_is_the_same_in_a_batch(on_gpu: Engine, healing: str) -> None:
    alone = healed(on_gpu, healing)
    runs: list[Callable[[Engine], Records]] = [
        lambda shared, one=one: healed(shared, one)  # type: ignore[misc]
        for one in (healing, "ghost_slot", "none", "merge")
    ]
    same_records(alone, run_batch(on_gpu, runs, 4)[0])
