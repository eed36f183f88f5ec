"""Pairs of slots whose positions are in the wrong order, counted on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LATER, EARLIER = 64, 128


def count_inversions(rows: Tensor) -> Tensor:
    """For each row of positions, int64 [R, n] below 2^31, pairs i < j with position_i > position_j:
    int64 [R]."""
    rows = rows.contiguous()
    number, slots = rows.shape
    counts = torch.zeros(number, dtype=torch.int64, device=rows.device)
    blocks = triton.cdiv(slots, LATER)
    _count_kernel[(blocks, number)](rows, counts, slots, LATER=LATER, EARLIER=EARLIER)
    return counts


@triton.jit(do_not_specialize=["slots"])
def _count_kernel(rows, counts, slots, LATER: tl.constexpr, EARLIER: tl.constexpr):
    """Compares a block of slots with all slots before each of them."""
    row = tl.program_id(1).to(tl.int64)
    rows += row * slots
    # The last slots have the most before them: they go first.
    first = (tl.cdiv(slots, LATER) - 1 - tl.program_id(0)) * LATER
    later = first + tl.arange(0, LATER)
    own = tl.load(rows + later, mask=later < slots, other=0x7FFFFFFF).to(tl.int32)
    found = tl.zeros((LATER, EARLIER), dtype=tl.int32)
    for begin in range(0, tl.minimum(first + LATER, slots), EARLIER):
        earlier = begin + tl.arange(0, EARLIER)
        position = tl.load(rows + earlier, mask=earlier < slots, other=0).to(tl.int32)
        wrong = (position[None, :] > own[:, None]) & (earlier[None, :] < later[:, None])
        found += wrong.to(tl.int32)
    total = tl.sum(tl.sum(found, 1), 0)
    tl.atomic_add(counts + row, total.to(tl.int64))
