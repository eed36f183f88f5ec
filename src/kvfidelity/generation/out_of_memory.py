"""How a run that exceeds the memory is recognized."""

from __future__ import annotations

import torch

from kvfidelity.cli import says_out_of_memory
from kvfidelity.decoding.engine import Engine


def ran_out_of_memory(engine: Engine, error: RuntimeError) -> bool:
    """Whether `error` says that memory ran out.

    Raises:
        RestartError: it does, but other runs held part of the memory (`decoding.scheduler`).
    """
    found = isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(error)
    if found and engine.scheduler is not None:
        engine.scheduler.on_out_of_memory()
    return found
