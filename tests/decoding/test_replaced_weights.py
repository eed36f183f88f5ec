"""An engine with other weights in the same memory gives what an engine that loads them gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding import compiled
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.decoding.sequence import Reply
from tests.models.tiny import save_tiny

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
    ],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_its_replies_are_those_of_a_fresh_engine(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was compiled and captured before uses the new weights."""
    monkeypatch.setattr(compiled, "FORWARDS_BEFORE_COMPILING", 0)
    one, other = (save_tiny(tmp_path / str(seed), seed) for seed in (0, 1))
    engine = Engine.load(one, "float32", device)
    before = replies(engine)
    replaced = engine.with_weights(other)
    assert replaced.graphs is engine.graphs and replaced.model_dir == other
    after, fresh = replies(replaced), replies(Engine.load(other, "float32", device))
    for found, expected, old in zip(after, fresh, before, strict=True):
        assert found.ids == expected.ids
        torch.testing.assert_close(found.nll, expected.nll, rtol=1e-5, atol=1e-5)
        assert (found.ids, found.nll) != (old.ids, old.nll)


def replies(engine: Engine) -> list[Reply]:
    def reply(at: Any, number: int) -> Reply:
        cache = at.new_cache("rerotated")
        hidden = at.feed(cache, [3 + (7 * number + n) % 200 for n in range(40 + number)])
        evictor = Evictor(
            build_policy("streaming_llm", {}), EvictionSchedule(Trigger.STEP, 50, target=30)
        )
        return generate(at, cache, evictor, hidden[-1:].clone(), 24, Sampling(), 0)

    return run_batch(engine, [lambda at, n=n: reply(at, n) for n in range(3)], 3)
