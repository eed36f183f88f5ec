"""Which decode steps an engine uses: a CUDA graph on a GPU, eager PyTorch elsewhere."""

from __future__ import annotations

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.sequence import Steps
from kvfidelity.decoding.steps_eager import EagerSteps

# Smallest reply length in tokens that a graph has room for; larger ones are powers of two.
MIN_CAPACITY = 512


def steps_of(engine: Engine, batch_size: int, sampling: Sampling, max_new_tokens: int) -> Steps:
    """Decode steps for batches of up to `batch_size` sequences; a captured graph is used again."""
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
    """Reply length in tokens that the steps are built for, at least `max_new_tokens`."""
    return max(MIN_CAPACITY, 1 << (max_new_tokens - 1).bit_length())
