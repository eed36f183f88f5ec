"""Which decode steps an engine uses: captured ones on a GPU, eager ones elsewhere."""

from __future__ import annotations

from kvfidelity.session.eager import EagerSteps
from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Steps
from kvfidelity.session.sampling import Sampling

# A graph has room for replies of so many tokens, or of the next power of two.
ROOM = 512


def steps_of(engine: Engine, lanes: int, sampling: Sampling, most: int) -> Steps:
    """Steps for so many lanes; what was captured once is used again."""
    if engine.device.type != "cuda":
        return EagerSteps(engine)
    from kvfidelity.session.captured import CapturedSteps

    room = room_for(most)
    key = (lanes, sampling.greedy, room)
    if key not in engine.captured:
        engine.captured[key] = CapturedSteps(engine, lanes, sampled=not sampling.greedy, most=room)
    steps: Steps = engine.captured[key]
    return steps


def room_for(most: int) -> int:
    """How many tokens steps have room for, that a reply of `most` fits."""
    return max(ROOM, 1 << (most - 1).bit_length())
