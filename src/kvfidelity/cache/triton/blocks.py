"""What several kernels do with a block of rows."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def pointer_at(address, dtype: tl.constexpr):
    """The pointer stored at `address`; allocations are aligned, which lets loads be wide."""
    return tl.multiple_of(tl.load(address).to(tl.pointer_type(dtype), bitcast=False), 16)


@triton.jit
def softmax_weights(
    query, query_row, lse, k, row, feature, count, factor, D: tl.constexpr, PRECISION: tl.constexpr
):
    """Softmax weights [keys, queries] of a block of keys under the queries `row` of `count`, whose
    log-sum-exp is known; from one query to the next are `query_row` elements."""
    mask = row < count
    q = tl.load(
        query + row[None, :].to(tl.int64) * query_row + feature[:, None],
        mask=mask[None, :] & (feature[:, None] < D),
        other=0.0,
    )
    level = tl.load(lse + row, mask=mask, other=float("inf")) * LOG2E
    logits = tl.dot(k, q, input_precision=PRECISION)
    return tl.exp2(logits * factor - level[None, :])
