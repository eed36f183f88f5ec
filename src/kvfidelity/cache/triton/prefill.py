"""Many queries at once: rotation by position, attention with its log-sum-exp, score sums.

Letters: H query heads, G kv heads, q new queries, n slots (the new ones included), d head size.
The new queries are the last q slots. Results equal those of `cache.attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfidelity.cache.triton.blocks import LOG2E, softmax_weights
from kvfidelity.cache.triton.dtypes import product_precision

#: cuDNN attends over prompts of at least this many tokens, if they are a multiple of that many.
LONG_PROMPT, ROUND_LENGTH = 4096, 1024


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """`cache.attention.attend`: [H, q, d] queries, [G, n, d] rotated keys and values."""
    return attend_with_lse(query, key, value, scaling)[0]


def attend_with_scores(
    query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """`cache.attention.attend_with_scores`: output [H, q, d] and fp32 column sums [H, n]."""
    out, lse = attend_with_lse(query, key, value, scaling)
    return out, score_sums(query, key, lse, scaling)


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Causal attention and the log of each query's softmax denominator.

    PyTorch's own kernels are used where possible (half precision, head size a multiple of 8), else
    the kernel below, which is exact in fp32. Flash attention is causal from the bottom right, as
    slots are. cuDNN's is twice as fast on Hopper. But it is causal from the top left, which is the
    same only for a whole prompt, and plans 65 ms for each new length. So it takes long prompts of
    round lengths.

    Returns:
        The output [H, q, d] and natural logarithms, fp32 [H, q].
    """
    heads, new, size = query.shape
    if query.dtype is torch.float32 or size % 8:
        return _forward(query, key, value, scaling)
    q, k, v = query[None], key[None], value[None]
    if (
        new == key.shape[1] >= LONG_PROMPT
        and new % ROUND_LENGTH == 0
        and _cudnn(query.device, size)
    ):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True, False, scale=scaling
        )
    else:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, True, False, scale=scaling
        )
    return out[0], lse.reshape(heads, new)


def _cudnn(device: torch.device, size: int) -> bool:
    """Whether cuDNN's attention is available and faster."""
    hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return hopper and size <= 128 and torch.backends.cuda.cudnn_sdp_enabled()


def score_sums(query: Tensor, key: Tensor, lse: Tensor, scaling: float) -> Tensor:
    """What each slot received from the q queries, fp32 [H, n], from their log-sum-exp [H, q].

    Each program holds a block of keys and loops over the queries that see it: one product, no
    values, no atomics. So sums do not depend on the order in which blocks run.
    """
    heads, new, size = query.shape
    groups, slots, _ = key.shape
    sums = torch.empty(heads, slots, dtype=torch.float32, device=query.device)
    lse = lse.contiguous()
    exact = query.dtype is torch.float32
    keys, rows, warps, stages = (64, 32, 4, 2) if exact else (128, 64, 4, 3)
    _score_kernel[(heads, triton.cdiv(slots, keys))](
        query,
        key,
        lse,
        sums,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        new,
        slots,
        scaling,
        RATIO=heads // groups,
        D=size,
        DP=_width(size),
        KEYS=keys,
        ROWS=rows,
        PRECISION=product_precision(query.dtype),
        num_warps=warps,
        num_stages=stages,
    )
    return sums


def rotate_by(x: Tensor, position: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate in fp32 by integer positions.

    Args:
        x: [G, n, d], the last dimension contiguous.
        position: int32 [1, n] or [G, n].
        cos, sin: fp32 [P, r / 2] of positions 0..P-1, see `cache.rotary`.

    Returns:
        [G, n, d], contiguous, in the dtype of `x`.
    """
    groups, slots, size = x.shape
    half = cos.shape[1]
    out = torch.empty(groups, slots, size, dtype=x.dtype, device=x.device)
    rows = 32
    _rotate_kernel[(triton.cdiv(slots, rows), groups)](
        x,
        out,
        position,
        cos,
        sin,
        x.stride(0),
        x.stride(1),
        position.stride(0) if position.shape[0] > 1 else 0,
        slots,
        D=size,
        HALF=half,
        HALFP=triton.next_power_of_2(half),
        RESTP=triton.next_power_of_2(max(size - 2 * half, 1)),
        ROWS=rows,
    )
    return out


def _width(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _forward(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    heads, new, size = query.shape
    groups, slots, _ = key.shape
    out = torch.empty(heads, new, size, dtype=query.dtype, device=query.device)
    lse = torch.empty(heads, new, dtype=torch.float32, device=query.device)
    rows, keys = 32, 32
    _forward_kernel[(triton.cdiv(new, rows), heads)](
        query,
        key,
        value,
        out,
        lse,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        new,
        slots,
        scaling,
        RATIO=heads // groups,
        D=size,
        DP=_width(size),
        KEYS=keys,
        ROWS=rows,
        PRECISION=product_precision(query.dtype),
        num_warps=4,
        num_stages=2,
    )
    return out, lse


@triton.jit(do_not_specialize=["new", "slots"])
def _score_kernel(
    query,
    key,
    lse,
    sums,
    query_head,
    query_row,
    key_group,
    key_row,
    new,
    slots,
    scaling,
    RATIO: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0)
    first = tl.program_id(1) * KEYS  # earlier keys are seen by more queries: the longest go first
    slot = first + tl.arange(0, KEYS)
    feature = tl.arange(0, DP)
    key += (head // RATIO).to(tl.int64) * key_group
    query += head.to(tl.int64) * query_head
    lse += head.to(tl.int64) * new
    k = tl.load(
        key + slot[:, None].to(tl.int64) * key_row + feature[None, :],
        mask=(slot[:, None] < slots) & (feature[None, :] < D),
        other=0.0,
    )
    cached = slots - new
    # Query row r stands in slot cached + r and sees the slots up to that one.
    start = tl.maximum(first - cached, 0) // ROWS * ROWS
    clear = tl.minimum((tl.maximum(first + KEYS - 1 - cached, 0) + ROWS - 1) // ROWS * ROWS, new)
    factor = scaling * LOG2E
    total = tl.zeros((KEYS, ROWS), dtype=tl.float32)
    for begin in range(start, clear, ROWS):
        row = begin + tl.arange(0, ROWS)
        weight = softmax_weights(query, query_row, lse, k, row, feature, new, factor, D, PRECISION)
        total += tl.where(slot[:, None] <= cached + row[None, :], weight, 0.0)
    for begin in range(clear, new, ROWS):
        row = begin + tl.arange(0, ROWS)
        total += softmax_weights(query, query_row, lse, k, row, feature, new, factor, D, PRECISION)
    tl.store(sums + head.to(tl.int64) * slots + slot, tl.sum(total, 1), mask=slot < slots)


@triton.jit(do_not_specialize=["new", "slots"])
def _forward_kernel(
    query,
    key,
    value,
    out,
    lse,
    query_head,
    query_row,
    key_group,
    key_row,
    value_group,
    value_row,
    new,
    slots,
    scaling,
    RATIO: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first, head = tl.program_id(0) * ROWS, tl.program_id(1)
    row = first + tl.arange(0, ROWS)
    feature = tl.arange(0, DP)
    inside = feature[None, :] < D
    key += (head // RATIO).to(tl.int64) * key_group
    value += (head // RATIO).to(tl.int64) * value_group
    q = tl.load(
        query
        + head.to(tl.int64) * query_head
        + row[:, None].to(tl.int64) * query_row
        + feature[None, :],
        mask=(row[:, None] < new) & inside,
        other=0.0,
    )
    cached = slots - new
    factor = scaling * LOG2E
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    norm = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, DP), dtype=tl.float32)
    for begin in range(0, tl.minimum(cached + first + ROWS, slots), KEYS):
        slot = begin + tl.arange(0, KEYS)
        mask = (slot[:, None] < slots) & inside
        k = tl.load(key + slot[:, None].to(tl.int64) * key_row + feature[None, :], mask, 0.0)
        v = tl.load(value + slot[:, None].to(tl.int64) * value_row + feature[None, :], mask, 0.0)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor
        logits = tl.where(slot[None, :] <= cached + row[:, None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weight = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    tl.store(
        out + (head.to(tl.int64) * new + row[:, None]) * D + feature[None, :],
        (mixed / norm[:, None]).to(out.dtype.element_ty),
        mask=(row[:, None] < new) & inside,
    )
    tl.store(lse + head.to(tl.int64) * new + row, (top + tl.log2(norm)) / LOG2E, mask=row < new)


@triton.jit(do_not_specialize=["position_group", "slots"])
def _rotate_kernel(
    x,
    out,
    position,
    cos,
    sin,
    x_group,
    x_row,
    position_group,
    slots,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HALFP: tl.constexpr,
    RESTP: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    feature = tl.arange(0, HALFP)[None, :]
    mask = row < slots
    both = mask[:, None] & (feature < HALF)
    positions = tl.load(position + group * position_group + row, mask=mask, other=0)
    angle = positions[:, None] * HALF + feature
    c = tl.load(cos + angle, mask=both, other=0.0)
    s = tl.load(sin + angle, mask=both, other=0.0)
    source = x + group * x_group + row[:, None].to(tl.int64) * x_row
    target = out + (group * slots + row[:, None]) * D
    one = tl.load(source + feature, mask=both, other=0.0).to(tl.float32)
    two = tl.load(source + HALF + feature, mask=both, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(target + feature, (one * c - two * s).to(dtype), mask=both)
    tl.store(target + HALF + feature, (two * c + one * s).to(dtype), mask=both)
    if D > 2 * HALF:
        rest = 2 * HALF + tl.arange(0, RESTP)[None, :]
        both = mask[:, None] & (rest < D)
        tl.store(target + rest, tl.load(source + rest, mask=both, other=0.0), mask=both)
