"""Triton kernels for CUDA devices, and what they need to know about caches as device data.

- `prefill`     rotates, attends and sums scores for many queries of one cache
- `feed`        the same for several caches in one forward, and appends; `feed_table`, `fed_caches`
- `decode`      all of it for one query per sequence in a captured step; `step_table`
- `inversions`  counts slots whose positions are in the wrong order
- `compact`     moves the survivors of an eviction to the front of every buffer
- `move`        copies chosen slots of kv heads into other buffers
- `head_feed`   `feed` and `decode` for kv heads that hold different numbers of slots: each of them
                is a separate cache; `head_step_table`
- `blocks`      what several kernels do with a block of rows
- `layout`      names the numbers of both tables; `addresses` finds a cache's buffers

A CPU uses `cache.attention` and `cache.rotary` instead, which are also the reference in tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def kernels_run_on(device: torch.device) -> bool:
    """Whether caches on this device use the kernels."""
    return device.type == "cuda"
