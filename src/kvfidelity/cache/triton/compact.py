"""Moves the survivors of an eviction to the front of the buffers, all layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfidelity.cache.ragged import upload
from kvfidelity.cache.triton.dtypes import TRITON_DTYPES

ROWS = 32


class Addresses:
    """Where buffers are, as numbers on the device: copied there only when one of them has moved."""

    def __init__(self) -> None:
        self._known: list[list[int]] = []
        self._rows = torch.empty(0, 0, dtype=torch.int64)

    def of(self, *lists: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of each list of N buffers their addresses, int64 [N] on their device."""
        found = [[buffer.data_ptr() for buffer in buffers] for buffers in lists]
        device = lists[0][0].device
        if found != self._known or self._rows.device != device:
            # Rows of an even length: kernels are compiled for pointers to multiples of 16 bytes.
            rows = torch.tensor([[*row, *[0] * (len(row) % 2)] for row in found])
            self._known, self._rows = found, upload(rows, device)
        return list(self._rows[:, : len(found[0])])


def compact(buffers: Sequence[Tensor], kept: Tensor, addresses: Tensor | None = None) -> None:
    """Move the slots in `kept` to the front of every buffer.

    Two launches for any number of layers: to a workspace and back, because a slot can move to where
    another one still has to be read.

    Args:
        buffers: keys or values of every layer, [1, G, capacity, d].
        kept: int64 [L', G', k] on the buffers' device, sorted slots.
        addresses: of the buffers, int64 [L] on their device, if they are there already.
    """
    first = buffers[0]
    _, groups, capacity, size = first.shape
    layers, heads, count = kept.shape
    if not count:
        return
    workspace = first.new_empty(len(buffers), groups, count, size)
    if addresses is None:
        (addresses,) = Addresses().of(buffers)
    kept = kept.contiguous()
    for back in (False, True):
        _move_kernel[(triton.cdiv(count, ROWS), groups, len(buffers))](
            addresses,
            workspace,
            kept,
            count,
            capacity,
            kept.stride(0) if layers > 1 else 0,
            kept.stride(1) if heads > 1 else 0,
            BACK=back,
            DTYPE=TRITON_DTYPES[first.dtype],
            GROUPS=groups,
            D=size,
            DP=triton.next_power_of_2(size),
            ROWS=ROWS,
        )


@triton.jit(do_not_specialize=["count", "capacity", "kept_layer", "kept_group"])
def _move_kernel(
    addresses,
    scratch,
    kept,
    count,
    capacity,
    kept_layer,
    kept_group,
    BACK: tl.constexpr,
    DTYPE: tl.constexpr,
    GROUPS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group, index = tl.program_id(1), tl.program_id(2).to(tl.int64)
    feature = tl.arange(0, DP)[None, :]
    mask = (row < count)[:, None] & (feature < D)
    buffer = tl.load(addresses + index).to(tl.pointer_type(DTYPE), bitcast=False)
    buffer = tl.multiple_of(buffer, 16) + group.to(tl.int64) * capacity * D
    workspace = scratch + ((index * GROUPS + group) * count + row[:, None]) * D + feature
    if BACK:
        tl.store(
            buffer + row[:, None].to(tl.int64) * D + feature,
            tl.load(workspace, mask=mask, other=0.0),
            mask=mask,
        )
    else:
        names = kept + index * kept_layer + group * kept_group
        slot = tl.load(names + row, mask=row < count, other=0)
        tl.store(
            workspace, tl.load(buffer + slot[:, None] * D + feature, mask=mask, other=0.0), mask
        )
