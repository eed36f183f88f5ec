"""Which decode steps an engine uses: captured ones on a GPU, eager ones elsewhere."""

from __future__ import annotations

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.sequence import Steps
from kvfidelity.decoding.steps_eager import EagerSteps

# A graph has room for replies of so many tokens, or of the next power of two.
MIN_CAPACITY = 512


def steps_of(engine: Engine, batch_size: int, sampling: Sampling, max_new_tokens: int) -> Steps:
    """Steps for so many lanes; what was captured once is used again."""
    if engine.device.type != "cuda":
        return EagerSteps(engine)
    from kvfidelity.decoding.steps_cudagraph import GraphSteps

    capacity = capacity_for(max_new_tokens)
    key = (batch_size, sampling.greedy, capacity)
    if key not in engine.graphs:
        engine.graphs[key] = GraphSteps(
            engine, batch_size, sampled=not sampling.greedy, max_new_tokens=capacity
        )
    steps: Steps = engine.graphs[key]
    return steps


def capacity_for(max_new_tokens: int) -> int:
    """How many tokens steps have room for, that a reply of `most` fits."""
    return max(MIN_CAPACITY, 1 << (max_new_tokens - 1).bit_length())
