"""What the benchmarks measure with."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from kvfidelity.decoding.engine import Engine


def weight_bytes(engine: Engine) -> int:
    """Bytes of the weights that a step reads: all but the embedding table."""
    return sum(
        weight.numel() * weight.element_size()
        for name, weight in engine.model.named_parameters()
        if "embed_tokens" not in name
    )


def bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on the GPU."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source), 9) * 1e3


def median_ms(run: Callable[[], Any], times: int) -> float:
    """Milliseconds by device events; by the clock without a GPU."""
    return median(elapsed_ms(run) for _ in range(times))


def elapsed_ms(run: Callable[[], Any]) -> float:
    if not torch.cuda.is_available():
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1e3
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)
