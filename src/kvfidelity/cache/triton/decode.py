"""One query per sequence: rotate keys as they are read, attend, add score sums.

Everything that changes between steps or sequences is device data, addresses included (see
`cache.triton.step_table`). So one captured graph also serves caches that grow, are evicted from, or
are replaced by other caches.

Letters: B sequences, H query heads, G kv heads, n cached slots of a sequence, d head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfidelity.cache.triton.blocks import LOG2E, pointer_at
from kvfidelity.cache.triton.dtypes import TRITON_DTYPES, product_precision
from kvfidelity.cache.triton.layout import LayerField, SequenceField

# Triton takes module-level integers as compile-time constants only in this form.
SLOTS = tl.constexpr(SequenceField.SLOTS.value)
NEXT_POSITION = tl.constexpr(SequenceField.NEXT_POSITION.value)
ALIVE = tl.constexpr(SequenceField.ALIVE.value)
CAPACITY = tl.constexpr(SequenceField.CAPACITY.value)
POSITIONS_STRIDE = tl.constexpr(SequenceField.POSITIONS_STRIDE.value)
SCORES_CAPACITY = tl.constexpr(SequenceField.SCORES_CAPACITY.value)
RING_SIZE = tl.constexpr(SequenceField.RING_SIZE.value)
RING_INDEX = tl.constexpr(SequenceField.RING_INDEX.value)
COS = tl.constexpr(SequenceField.COS.value)
SIN = tl.constexpr(SequenceField.SIN.value)
KEYS = tl.constexpr(LayerField.KEYS.value)
VALUES = tl.constexpr(LayerField.VALUES.value)
LATEST_SCORES = tl.constexpr(LayerField.LATEST_SCORES.value)
ACCUMULATED_SCORES = tl.constexpr(LayerField.ACCUMULATED_SCORES.value)
QUERY_RING = tl.constexpr(LayerField.QUERY_RING.value)
POSITIONS = tl.constexpr(LayerField.POSITIONS.value)

#: How many programs share one sequence's slots per kv head, at most; and those that finish a head.
MAX_SPLITS, FINISHERS = 64, 4


@torch.library.custom_op("kvfidelity::decode", mutates_args=())
def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Tensor,
    layer_rows: Tensor,
    half: int,
    scaling: float,
    shares: int = 1,
) -> Tensor:
    """Append each living sequence's new key and value to its cache, and attend.

    Args:
        query: [B, H, 1, d], un-rotated; key, value: [B, G, 1, d], the key un-rotated.
        sequences: int64 [B, fields], a row of SequenceField each.
        layer_rows: int64 [B, fields], this layer's row of LayerField each.
        half: half the rotary width.
        scaling: factor on the dot products.
        shares: how many times as many programs share a sequence, if lengths differ so much that the
            longest sequence would be waited for.

    Returns:
        [B, 1, H, d]; zeros for a sequence that is not alive, whose cache stays as it is.
    """
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    count, heads, _, size = query.shape
    groups = key.shape[1]
    splits = min(MAX_SPLITS, shares * split_count(count * groups, query.device))
    part = torch.empty(count, heads, splits, size, dtype=torch.float32, device=query.device)
    peak = torch.empty(count, heads, splits, 2, dtype=torch.float32, device=query.device)
    out = torch.empty(count, 1, heads, size, dtype=query.dtype, device=query.device)
    exact = query.dtype is torch.float32
    # Many short shares want small blocks, few long ones deep prefetching (measured on an H100).
    block, stages = (32, 2) if splits >= MAX_SPLITS // 2 else (64, 3)
    _split_kernel[(splits, groups, count)](
        query,
        key,
        value,
        sequences,
        layer_rows,
        part,
        peak,
        scaling,
        DTYPE=TRITON_DTYPES[query.dtype],
        HEADS=heads,
        GROUPS=groups,
        RATIO=heads // groups,
        ROWS=max(16, triton.next_power_of_2(heads // groups)),
        D=size,
        DP=max(16, triton.next_power_of_2(size)),
        HALF=half,
        HALFP=max(16, triton.next_power_of_2(half)),
        RESTP=max(16, triton.next_power_of_2(max(size - 2 * half, 1))),
        SPLITS=splits,
        BLOCK=32 if exact else block,
        SEQUENCE_WIDTH=len(SequenceField),
        LAYER_WIDTH=len(LayerField),
        PRECISION=product_precision(query.dtype),
        num_warps=4,
        num_stages=1 if exact else stages,
    )
    _finish_kernel[(FINISHERS, heads, count)](
        part,
        peak,
        out,
        sequences,
        layer_rows,
        HEADS=heads,
        D=size,
        DP=triton.next_power_of_2(size),
        SPLITS=splits,
        FINISHERS=FINISHERS,
        BLOCK=512,
        SEQUENCE_WIDTH=len(SequenceField),
        LAYER_WIDTH=len(LayerField),
        num_warps=4,
    )
    return out


@decode.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Tensor,
    layer_rows: Tensor,
    half: int,
    scaling: float,
    shares: int = 1,
) -> Tensor:
    count, heads, _, size = query.shape
    return query.new_empty(count, 1, heads, size)


def split_count(sequences: int, device: torch.device) -> int:
    """Programs per sequence and kv head: about two to four for every multiprocessor in all."""
    units = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(MAX_SPLITS, triton.next_power_of_2(units // sequences)))


@triton.jit
def _split_kernel(
    query,
    key,
    value,
    sequences,
    layer_rows,
    part,
    peak,
    scaling,
    DTYPE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    HALF: tl.constexpr,
    HALFP: tl.constexpr,
    RESTP: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEQUENCE_WIDTH: tl.constexpr,
    LAYER_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, group, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    sequences += sequence * SEQUENCE_WIDTH
    layer_rows += sequence * LAYER_WIDTH
    if tl.load(sequences + ALIVE) == 0:
        return
    slots = tl.load(sequences + SLOTS).to(tl.int32)
    position = tl.load(sequences + NEXT_POSITION)
    capacity = tl.load(sequences + CAPACITY)
    cos = pointer_at(sequences + COS, tl.float32)
    sin = pointer_at(sequences + SIN, tl.float32)
    keys = pointer_at(layer_rows + KEYS, DTYPE) + group * capacity * D
    values = pointer_at(layer_rows + VALUES, DTYPE) + group * capacity * D
    latest = tl.load(layer_rows + LATEST_SCORES)
    scores = latest.to(tl.pointer_type(tl.float32), bitcast=False)
    score_row = tl.load(sequences + SCORES_CAPACITY)
    positions = pointer_at(layer_rows + POSITIONS, tl.int32) + group * tl.load(
        sequences + POSITIONS_STRIDE
    )

    member = tl.arange(0, ROWS)
    head = group * RATIO + member
    mine = member < RATIO
    low = tl.arange(0, HALFP)
    low_in = low < HALF
    rest = 2 * HALF + tl.arange(0, RESTP)
    rest_in = rest < D
    feature = tl.arange(0, DP)
    feature_in = feature < D
    factor = scaling * LOG2E

    # The new query of each of this kv head's query heads, rotated.
    c = tl.load(cos + position * HALF + low, mask=low_in, other=0.0)
    s = tl.load(sin + position * HALF + low, mask=low_in, other=0.0)
    source = query + (sequence * HEADS + head[:, None]) * D
    both = mine[:, None] & low_in[None, :]
    one = tl.load(source + low[None, :], mask=both, other=0.0).to(tl.float32)
    two = tl.load(source + HALF + low[None, :], mask=both, other=0.0).to(tl.float32)
    q1 = (one * c[None, :] - two * s[None, :]).to(DTYPE)
    q2 = (two * c[None, :] + one * s[None, :]).to(DTYPE)
    if D > 2 * HALF:
        q3 = tl.load(source + rest[None, :], mask=mine[:, None] & rest_in[None, :], other=0.0)

    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    norm = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, DP), dtype=tl.float32)
    if split == 0:
        # The first share begins with the new slot, from registers, and puts it into the cache.
        new_key = key + (sequence * GROUPS + group) * D
        raw1 = tl.load(new_key + low, mask=low_in, other=0.0)
        raw2 = tl.load(new_key + HALF + low, mask=low_in, other=0.0)
        new_value = tl.load(
            value + (sequence * GROUPS + group) * D + feature, mask=feature_in, other=0.0
        )
        offset = slots.to(tl.int64) * D
        tl.store(keys + offset + low, raw1, mask=low_in)
        tl.store(keys + offset + HALF + low, raw2, mask=low_in)
        tl.store(values + offset + feature, new_value, mask=feature_in)
        tl.store(positions + slots, position.to(tl.int32))
        k1 = (raw1.to(tl.float32) * c - raw2.to(tl.float32) * s).to(DTYPE).to(tl.float32)
        k2 = (raw2.to(tl.float32) * c + raw1.to(tl.float32) * s).to(DTYPE).to(tl.float32)
        top = tl.sum(q1.to(tl.float32) * k1[None, :] + q2.to(tl.float32) * k2[None, :], 1)
        if D > 2 * HALF:
            raw3 = tl.load(new_key + rest, mask=rest_in, other=0.0)
            tl.store(keys + offset + rest, raw3, mask=rest_in)
            top += tl.sum(q3.to(tl.float32) * raw3.to(tl.float32)[None, :], 1)
        top = top * factor
        norm += 1.0
        mixed += new_value.to(tl.float32)[None, :]
        if latest != 0:
            tl.store(scores + head * score_row + slots, top, mask=mine)
        query_ring = tl.load(layer_rows + QUERY_RING)
        if query_ring != 0:
            ring = query_ring.to(tl.pointer_type(DTYPE), bitcast=False)
            ring += (
                head[:, None] * tl.load(sequences + RING_SIZE) + tl.load(sequences + RING_INDEX)
            ) * D
            in_ring = mine[:, None] & feature_in[None, :]
            whole = tl.load(source + feature[None, :], mask=in_ring, other=0.0)
            tl.store(ring + feature[None, :], whole, mask=in_ring)

    share = (slots + SPLITS - 1) // SPLITS
    share = (share + BLOCK - 1) // BLOCK * BLOCK
    stop = tl.minimum((split + 1) * share, slots)
    for begin in range(split * share, stop, BLOCK):
        slot = begin + tl.arange(0, BLOCK)
        inside = slot < stop
        angle = tl.load(positions + slot, mask=inside, other=0)[:, None] * HALF + low[None, :]
        both_in = inside[:, None] & low_in[None, :]
        turn_c = tl.load(cos + angle, mask=both_in, other=0.0)
        turn_s = tl.load(sin + angle, mask=both_in, other=0.0)
        at = keys + slot[:, None].to(tl.int64) * D
        key1 = tl.load(at + low[None, :], mask=both_in, other=0.0).to(tl.float32)
        key2 = tl.load(at + HALF + low[None, :], mask=both_in, other=0.0).to(tl.float32)
        key1_at = (key1 * turn_c - key2 * turn_s).to(DTYPE)
        key2_at = (key2 * turn_c + key1 * turn_s).to(DTYPE)
        logits = tl.dot(q1, tl.trans(key1_at), input_precision=PRECISION)
        logits += tl.dot(q2, tl.trans(key2_at), input_precision=PRECISION)
        if D > 2 * HALF:
            key3 = tl.load(at + rest[None, :], mask=inside[:, None] & rest_in[None, :], other=0.0)
            logits += tl.dot(q3, tl.trans(key3), input_precision=PRECISION)
        logits = tl.where(inside[None, :], logits * factor, float("-inf"))
        if latest != 0:
            tl.store(
                scores + head[:, None] * score_row + slot[None, :],
                logits,
                mask=mine[:, None] & inside[None, :],
            )
        v = tl.load(
            values + slot[:, None].to(tl.int64) * D + feature[None, :],
            mask=inside[:, None] & feature_in[None, :],
            other=0.0,
        )
        higher = tl.maximum(top, tl.max(logits, 1))
        weight = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weight.to(DTYPE), v, input_precision=PRECISION)
        top = higher

    offset = (sequence * HEADS + head) * SPLITS + split
    tl.store(peak + 2 * offset, top, mask=mine)
    tl.store(peak + 2 * offset + 1, norm, mask=mine)
    tl.store(
        part + offset[:, None] * D + feature[None, :],
        mixed,
        mask=mine[:, None] & feature_in[None, :],
    )


@triton.jit
def _finish_kernel(
    part,
    peak,
    out,
    sequences,
    layer_rows,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    SPLITS: tl.constexpr,
    FINISHERS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEQUENCE_WIDTH: tl.constexpr,
    LAYER_WIDTH: tl.constexpr,
):
    """Merge the shares, and turn logits into weights: `latest` is this step's, `sums` grow."""
    program, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    sequences += sequence * SEQUENCE_WIDTH
    layer_rows += sequence * LAYER_WIDTH
    feature = tl.arange(0, DP)
    target = out + (sequence * HEADS + head) * D + feature
    if tl.load(sequences + ALIVE) == 0:
        if program == 0:
            tl.store(target, tl.zeros((DP,), out.dtype.element_ty), mask=feature < D)
        return
    split = tl.arange(0, SPLITS)
    offset = (sequence * HEADS + head) * SPLITS + split
    tops = tl.load(peak + 2 * offset)
    top = tl.max(tops, 0)
    fade = tl.exp2(tops - top)
    norm = tl.sum(tl.load(peak + 2 * offset + 1) * fade, 0)
    if program == 0:
        shares = tl.load(
            part + offset[:, None] * D + feature[None, :], mask=feature[None, :] < D, other=0.0
        )
        mixed = tl.sum(shares * fade[:, None], 0) / norm
        tl.store(target, mixed.to(out.dtype.element_ty), mask=feature < D)
    address = tl.load(layer_rows + LATEST_SCORES)
    if address != 0:
        level = top + tl.log2(norm)
        row = head * tl.load(sequences + SCORES_CAPACITY)
        latest = address.to(tl.pointer_type(tl.float32), bitcast=False) + row
        sums = (
            tl.load(layer_rows + ACCUMULATED_SCORES).to(tl.pointer_type(tl.float32), bitcast=False)
            + row
        )
        slots = tl.load(sequences + SLOTS).to(tl.int32)
        for begin in range(program * BLOCK, slots + 1, FINISHERS * BLOCK):
            slot = begin + tl.arange(0, BLOCK)
            mask = slot <= slots
            weight = tl.exp2(tl.load(latest + slot, mask=mask, other=0.0) - level)
            tl.store(latest + slot, weight, mask=mask)
            before = tl.load(sums + slot, mask=slot < slots, other=0.0)
            tl.store(sums + slot, before + weight, mask=mask)
