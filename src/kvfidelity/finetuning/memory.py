"""Memory of a GPU that other processes use too."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
#: Seconds before each further attempt. Runs on the same GPU give memory back when they end.
WAITS_S = (5.0, 10.0, 20.0, 40.0, 80.0)
#: What the others must hold at least, in bytes, for their giving it back to be worth waiting for.
WORTH_WAITING = 2 * 10**9


def with_memory(
    compute: Callable[[], T], device: torch.device, undo: Callable[[], None] = lambda: None
) -> T:
    """What `compute` returns; where memory ran out and other processes hold some of it, it is
    tried again.

    Args:
        compute: may be called several times.
        device: whose memory it takes.
        undo: called before each further attempt, takes back what the one before has left.

    Raises:
        torch.OutOfMemoryError: others hold none of it, or do not give it back.
    """
    for seconds in WAITS_S:
        try:
            return compute()
        except torch.OutOfMemoryError:
            if not held_by_others(device):
                raise
        # Here, since while the error is handled its traceback keeps what `compute` had allocated.
        undo()
        gc.collect()
        torch.cuda.empty_cache()
        print(f"the GPU's memory is held by others: next attempt in {seconds:g} s", flush=True)
        time.sleep(seconds)
    return compute()


def held_by_others(device: torch.device) -> bool:
    """Whether other processes hold memory of the GPU that is worth waiting for."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) > WORTH_WAITING
