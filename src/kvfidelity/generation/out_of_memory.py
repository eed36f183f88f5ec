"""How a run that exceeds the memory is recognized."""

from __future__ import annotations

import torch

from kvfidelity.decoding.engine import Engine

#: PyTorch has an error class for GPUs only; its CPU allocator and CUDA's libraries raise these.
MESSAGES = ("not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out_of_memory(engine: Engine, error: RuntimeError) -> bool:
    """Whether `error` says that memory ran out.

    Raises:
        RestartError: it does, but other runs held part of the memory (`decoding.scheduler`).
    """
    message = str(error)
    found = isinstance(error, torch.OutOfMemoryError) or any(text in message for text in MESSAGES)
    if found and engine.scheduler is not None:
        engine.scheduler.on_out_of_memory()
    return found
