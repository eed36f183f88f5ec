"""Which decode steps an engine uses: a CUDA graph on a GPU, eager PyTorch elsewhere."""

from __future__ import annotations

from typing import NamedTuple

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sequence import SequenceState, Steps
from kvfidelity.decoding.steps_eager import EagerSteps

# Smallest reply length in tokens that a graph has room for; larger ones are powers of two.
MIN_CAPACITY = 512


class StepsKind(NamedTuple):
    """Sequences of one kind share their decode steps.

    greedy: whether no token is sampled. capacity: reply length in tokens that there is room for.
    ragged: whether kv heads may hold different numbers of slots, which matters on a GPU only.
    """

    greedy: bool
    capacity: int
    ragged: bool

    @classmethod
    def of(cls, sequence: SequenceState) -> StepsKind:
        """The kind of the steps that decode `sequence`."""
        return cls(
            sequence.sampling.greedy,
            capacity_for(sequence.max_new_tokens),
            sequence.ragged and sequence.cache.device.type == "cuda",
        )


def steps_of(engine: Engine, batch_size: int, kind: StepsKind) -> Steps:
    """Decode steps for batches of up to `batch_size` sequences, without any in them.

    A captured graph is used again. What an earlier decoder has left in it, whose runs were dropped,
    would go on decoding into memory that is no longer theirs.
    """
    if engine.device.type != "cuda":
        return EagerSteps(engine)
    from kvfidelity.decoding.steps_cudagraph import GraphSteps

    key = (batch_size, kind)
    if key not in engine.graphs:
        engine.graphs[key] = GraphSteps(
            engine,
            batch_size,
            sampled=not kind.greedy,
            max_new_tokens=kind.capacity,
            ragged=kind.ragged,
        )
    steps: GraphSteps = engine.graphs[key]
    steps.clear()
    return steps


def capacity_for(max_new_tokens: int) -> int:
    """Reply length in tokens that the steps are built for, at least `max_new_tokens`."""
    return max(MIN_CAPACITY, 1 << (max_new_tokens - 1).bit_length())
