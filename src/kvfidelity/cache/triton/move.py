"""Copies slots of kv heads into other buffers: all layers, keys and values in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfidelity.cache.flat_layer import FlatLayer
from kvfidelity.cache.layers import SlotLayer
from kvfidelity.cache.ragged import upload
from kvfidelity.cache.triton.addresses import head_addresses
from kvfidelity.cache.triton.blocks import pointer_at
from kvfidelity.cache.triton.dtypes import TRITON_DTYPES

ROWS = 32
#: Columns of the kernel's table: addresses of the first slot, slots to copy, and where the list of
#: slots starts.
SOURCE, TARGET, COUNT, FIRST = (tl.constexpr(column) for column in range(4))
WIDTH = 4


def move_slots(
    sources: Sequence[SlotLayer | FlatLayer],
    targets: Sequence[FlatLayer],
    counts: Sequence[Sequence[int]],
    slots: Tensor | None = None,
) -> None:
    """Copy slots of each layer's kv heads to the start of the same heads in other buffers.

    Args:
        counts: how many of each layer's and head's.
        slots: int64 [total] on the device, which ones: as in `RaggedKeepSet`; the first ones by
            default.
    """
    sizes = np.array(counts)
    if not sizes.any():
        return
    ends = sizes.cumsum().reshape(sizes.shape)
    # Of keys and values.
    table = np.empty((2, *sizes.shape, WIDTH), dtype=np.int64)
    table[..., 0], table[..., 1] = head_addresses(sources), head_addresses(targets)
    table[..., 2], table[..., 3] = sizes, ends - sizes
    buffer = targets[0].key_buffer
    size = buffer.shape[-1]
    _copy_kernel[(triton.cdiv(int(sizes.max()), ROWS), table[..., 0].size)](
        upload(torch.from_numpy(table), buffer.device),
        slots,
        DTYPE=TRITON_DTYPES[buffer.dtype],
        CHOSEN=slots is not None,
        D=size,
        DP=triton.next_power_of_2(size),
        ROWS=ROWS,
        TABLE_WIDTH=WIDTH,
    )


@triton.jit
def _copy_kernel(
    table,
    slots,
    DTYPE: tl.constexpr,
    CHOSEN: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    TABLE_WIDTH: tl.constexpr,
):
    table += tl.program_id(1) * TABLE_WIDTH
    count = tl.load(table + COUNT).to(tl.int32)
    if tl.program_id(0) * ROWS >= count:
        return
    source, target = pointer_at(table + SOURCE, DTYPE), pointer_at(table + TARGET, DTYPE)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, DP)[None, :]
    mask = (row < count)[:, None] & (feature < D)
    slot = row.to(tl.int64)
    if CHOSEN:
        slot = tl.load(slots + tl.load(table + FIRST) + row, mask=row < count, other=0)
    kept = tl.load(source + slot[:, None] * D + feature, mask=mask, other=0.0)
    tl.store(target + row[:, None].to(tl.int64) * D + feature, kept, mask=mask)
