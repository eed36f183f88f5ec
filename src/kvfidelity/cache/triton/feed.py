"""Several caches fed in one forward: append, rotate, attend, sum scores; four launches a layer.

Each program finds its cache's buffers, lengths and positions in a table (`feed_table`), so that
caches may differ in all of them. Results equal those of `cache.attention` for each cache alone.

Letters: B caches, R new tokens of all caches, H query heads, G kv heads, d head size; of one cache
q new queries and n slots, the new ones included. The new queries are the last q slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvfidelity.cache.triton.blocks import LOG2E, pointer_at, softmax_weights
from kvfidelity.cache.triton.dtypes import TRITON_DTYPES, product_precision
from kvfidelity.cache.triton.layout import FeedField, LayerField

# Triton takes module-level integers as compile-time constants only in this form.
SLOTS = tl.constexpr(FeedField.SLOTS.value)
COUNT = tl.constexpr(FeedField.COUNT.value)
FIRST_ROW = tl.constexpr(FeedField.FIRST_ROW.value)
FIRST_SLOT = tl.constexpr(FeedField.FIRST_SLOT.value)
FIRST_TOKEN = tl.constexpr(FeedField.FIRST_TOKEN.value)
FIRST_POSITION = tl.constexpr(FeedField.FIRST_POSITION.value)
CAPACITY = tl.constexpr(FeedField.CAPACITY.value)
POSITIONS_STRIDE = tl.constexpr(FeedField.POSITIONS_STRIDE.value)
SCORES_CAPACITY = tl.constexpr(FeedField.SCORES_CAPACITY.value)
CONTINUES = tl.constexpr(FeedField.CONTINUES.value)
RING_SIZE = tl.constexpr(FeedField.RING_SIZE.value)
LATEST_IS_LAST = tl.constexpr(FeedField.LATEST_IS_LAST.value)
KEYS = tl.constexpr(LayerField.KEYS.value)
VALUES = tl.constexpr(LayerField.VALUES.value)
LATEST_SCORES = tl.constexpr(LayerField.LATEST_SCORES.value)
ACCUMULATED_SCORES = tl.constexpr(LayerField.ACCUMULATED_SCORES.value)
QUERY_RING = tl.constexpr(LayerField.QUERY_RING.value)
POSITIONS = tl.constexpr(LayerField.POSITIONS.value)
#: Rows of a block in the kernels that only move data.
BLOCK = 32


@torch.library.custom_op("kvfidelity::feed", mutates_args=())
def feed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Tensor,
    layer_rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    most_rows: int,
    most_slots: int,
    slots: int,
    scored: bool,
    scaling: float,
) -> Tensor:
    """Append one layer's new keys and values to each cache, and attend.

    Args:
        query: [1, H, R, d], key, value: [1, G, R, d], all un-rotated, the last dimension
            contiguous.
        sequences, cos, sin, most_rows, most_slots, slots, scored: of the `FeedTable`.
        layer_rows: int64 [B, fields], this layer's row of LayerField for each cache.
        scaling: factor on the dot products.

    Returns:
        [1, R, H, d] in the dtype of `query`.
    """
    _, heads, rows, size = query.shape
    groups, batch, half = key.shape[1], sequences.shape[0], cos.shape[1]
    # Each cache's rotated keys [G, n, d], one cache after another.
    rotated_keys = query.new_empty(slots * groups * size)
    rotated_queries = query.new_empty(heads, rows, size)
    # Natural logarithms of the softmax denominators.
    lse = query.new_empty(heads, rows, dtype=torch.float32)
    out = torch.empty(1, rows, heads, size, dtype=query.dtype, device=query.device)
    exact = query.dtype is torch.float32
    shape = {
        "HEADS": heads,
        "GROUPS": groups,
        "RATIO": heads // groups,
        "D": size,
        "DP": max(16, triton.next_power_of_2(size)),
        "DTYPE": TRITON_DTYPES[query.dtype],
        "SEQUENCE_WIDTH": len(FeedField),
        "LAYER_WIDTH": len(LayerField),
    }
    rotation = {
        "HALF": half,
        "HALFP": triton.next_power_of_2(half),
        "RESTP": triton.next_power_of_2(max(size - 2 * half, 1)),
        "ROWS": BLOCK,
    }
    precision = product_precision(query.dtype)
    _append_kernel[(triton.cdiv(most_rows, BLOCK), heads, batch)](
        query,
        key,
        value,
        rotated_queries,
        sequences,
        layer_rows,
        cos,
        sin,
        query.stride(1),
        query.stride(2),
        key.stride(1),
        key.stride(2),
        value.stride(1),
        value.stride(2),
        rows,
        **shape,
        **rotation,
    )
    _rotate_keys_kernel[(triton.cdiv(most_slots, BLOCK), groups, batch)](
        rotated_keys,
        sequences,
        layer_rows,
        cos,
        sin,
        **shape,
        **rotation,
    )
    tile = _attention_tile(most_rows, size, heads // groups, exact)
    _attention_kernel[(triton.cdiv(most_rows * tile.heads, tile.rows), heads // tile.heads, batch)](
        rotated_queries,
        rotated_keys,
        out,
        lse,
        sequences,
        layer_rows,
        rows,
        scaling,
        **shape,
        ROWS=tile.rows,
        HEADS_AT_ONCE=tile.heads,
        KEYS_AT_ONCE=tile.keys,
        PRECISION=precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if scored:
        tile = _score_tile(exact)
        _score_kernel[(heads, triton.cdiv(most_slots, tile.keys), batch)](
            rotated_queries,
            rotated_keys,
            lse,
            sequences,
            layer_rows,
            rows,
            scaling,
            **shape,
            ROWS=tile.rows,
            KEYS_AT_ONCE=tile.keys,
            PRECISION=precision,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


@feed.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Tensor,
    layer_rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    most_rows: int,
    most_slots: int,
    slots: int,
    scored: bool,
    scaling: float,
) -> Tensor:
    _, heads, rows, size = query.shape
    return query.new_empty(1, rows, heads, size)


class Tile(NamedTuple):
    """What a program holds at once: rows of queries, of so many query heads, and keys."""

    rows: int
    keys: int
    warps: int
    stages: int
    heads: int = 1


def _attention_tile(most_rows: int, size: int, ratio: int, exact: bool) -> Tile:
    """Query heads of one kv head (`ratio` of them) share the keys that a program loads."""
    if exact:
        return Tile(32, 64 if size <= 64 else 32, 4, 2)
    shared = ratio if ratio in (2, 4, 8) else 1
    if most_rows * shared <= 32:
        return Tile(32, 64, 4, 3, shared)
    return Tile(64, 64, 4, 3, shared)


def _score_tile(exact: bool) -> Tile:
    return Tile(32, 128, 4, 2) if exact else Tile(64, 128, 4, 3)


@triton.jit
def _rotated(one, two, cos, sin, position, mask, HALF: tl.constexpr, HALFP: tl.constexpr):
    """Both rotated halves [rows, half] of rows at `position`."""
    feature = tl.arange(0, HALFP)[None, :]
    both = mask[:, None] & (feature < HALF)
    angle = position[:, None] * HALF + feature
    c = tl.load(cos + angle, mask=both, other=0.0)
    s = tl.load(sin + angle, mask=both, other=0.0)
    return one * c - two * s, two * c + one * s


@triton.jit(do_not_specialize=["query_row", "key_row", "value_row", "rows"])
def _append_kernel(
    query,
    key,
    value,
    rotated_queries,
    sequences,
    layer_rows,
    cos,
    sin,
    query_head,
    query_row,
    key_group,
    key_row,
    value_group,
    value_row,
    rows,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DTYPE: tl.constexpr,
    SEQUENCE_WIDTH: tl.constexpr,
    LAYER_WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HALFP: tl.constexpr,
    RESTP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Queries rotated, and written to the ring; keys and values written to the cache."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    sequences += sequence * SEQUENCE_WIDTH
    layer_rows += sequence * LAYER_WIDTH
    count = tl.load(sequences + COUNT).to(tl.int32)
    if tl.program_id(0) * ROWS >= count:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < count
    packed_row = tl.load(sequences + FIRST_ROW) + row
    position = tl.load(sequences + FIRST_POSITION) + row
    low = tl.arange(0, HALFP)[None, :]
    low_in = mask[:, None] & (low < HALF)
    feature = tl.arange(0, DP)[None, :]
    whole_in = mask[:, None] & (feature < D)

    source = query + head.to(tl.int64) * query_head + packed_row[:, None] * query_row
    one = tl.load(source + low, mask=low_in, other=0.0).to(tl.float32)
    two = tl.load(source + HALF + low, mask=low_in, other=0.0).to(tl.float32)
    one, two = _rotated(one, two, cos, sin, position, mask, HALF, HALFP)
    target = rotated_queries + (head.to(tl.int64) * rows + packed_row[:, None]) * D
    tl.store(target + low, one.to(DTYPE), mask=low_in)
    tl.store(target + HALF + low, two.to(DTYPE), mask=low_in)
    if D > 2 * HALF:
        rest = 2 * HALF + tl.arange(0, RESTP)[None, :]
        rest_in = mask[:, None] & (rest < D)
        tl.store(target + rest, tl.load(source + rest, mask=rest_in, other=0.0), mask=rest_in)
    ring_size = tl.load(sequences + RING_SIZE)
    if ring_size != 0:
        ring = pointer_at(layer_rows + QUERY_RING, DTYPE)
        index = (tl.load(sequences + FIRST_TOKEN) + row) % ring_size
        latest = whole_in & (row >= count - ring_size)[:, None]
        tl.store(
            ring + (head * ring_size + index[:, None]) * D + feature,
            tl.load(source + feature, mask=latest, other=0.0),
            mask=latest,
        )

    if head < GROUPS:
        slot = tl.load(sequences + SLOTS) + row
        offset = (head * tl.load(sequences + CAPACITY) + slot[:, None]) * D + feature
        source = key + head.to(tl.int64) * key_group + packed_row[:, None] * key_row
        keys = pointer_at(layer_rows + KEYS, DTYPE)
        tl.store(keys + offset, tl.load(source + feature, whole_in, 0.0), mask=whole_in)
        source = value + head.to(tl.int64) * value_group + packed_row[:, None] * value_row
        values = pointer_at(layer_rows + VALUES, DTYPE)
        tl.store(values + offset, tl.load(source + feature, whole_in, 0.0), mask=whole_in)


@triton.jit
def _rotate_keys_kernel(
    rotated_keys,
    sequences,
    layer_rows,
    cos,
    sin,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DTYPE: tl.constexpr,
    SEQUENCE_WIDTH: tl.constexpr,
    LAYER_WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HALFP: tl.constexpr,
    RESTP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """All keys of each cache, rotated by their slots' positions."""
    group, sequence = tl.program_id(1).to(tl.int64), tl.program_id(2)
    sequences += sequence * SEQUENCE_WIDTH
    layer_rows += sequence * LAYER_WIDTH
    slots = (tl.load(sequences + SLOTS) + tl.load(sequences + COUNT)).to(tl.int32)
    if tl.program_id(0) * ROWS >= slots:
        return
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = slot < slots
    positions = pointer_at(layer_rows + POSITIONS, tl.int32)
    positions += group * tl.load(sequences + POSITIONS_STRIDE)
    position = tl.load(positions + slot, mask=mask, other=0)
    low = tl.arange(0, HALFP)[None, :]
    low_in = mask[:, None] & (low < HALF)
    source = pointer_at(layer_rows + KEYS, DTYPE)
    source += (group * tl.load(sequences + CAPACITY) + slot[:, None]) * D
    target = rotated_keys + tl.load(sequences + FIRST_SLOT) * GROUPS * D
    target += (group * slots + slot[:, None]) * D
    one = tl.load(source + low, mask=low_in, other=0.0).to(tl.float32)
    two = tl.load(source + HALF + low, mask=low_in, other=0.0).to(tl.float32)
    one, two = _rotated(one, two, cos, sin, position, mask, HALF, HALFP)
    tl.store(target + low, one.to(DTYPE), mask=low_in)
    tl.store(target + HALF + low, two.to(DTYPE), mask=low_in)
    if D > 2 * HALF:
        rest = 2 * HALF + tl.arange(0, RESTP)[None, :]
        rest_in = mask[:, None] & (rest < D)
        tl.store(target + rest, tl.load(source + rest, mask=rest_in, other=0.0), mask=rest_in)


@triton.jit(do_not_specialize=["rows"])
def _attention_kernel(
    rotated_queries,
    rotated_keys,
    out,
    lse,
    sequences,
    layer_rows,
    rows,
    scaling,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DTYPE: tl.constexpr,
    SEQUENCE_WIDTH: tl.constexpr,
    LAYER_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    KEYS_AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence = tl.program_id(2)
    sequences += sequence * SEQUENCE_WIDTH
    layer_rows += sequence * LAYER_WIDTH
    count = tl.load(sequences + COUNT).to(tl.int32)
    # The last queries see the most keys: they go first.
    tokens: tl.constexpr = ROWS // HEADS_AT_ONCE
    first = (tl.cdiv(count, tokens) - 1 - tl.program_id(0)) * tokens
    if first < 0:
        return
    cached = tl.load(sequences + SLOTS).to(tl.int32)
    slots = cached + count
    first_head = tl.program_id(1) * HEADS_AT_ONCE
    group = (first_head // RATIO).to(tl.int64)
    head = (first_head + tl.arange(0, ROWS) % HEADS_AT_ONCE).to(tl.int64)
    row = first + tl.arange(0, ROWS) // HEADS_AT_ONCE
    feature = tl.arange(0, DP)
    inside = feature[None, :] < D
    packed_row = tl.load(sequences + FIRST_ROW) + row
    q = tl.load(
        rotated_queries + (head * rows + packed_row)[:, None] * D + feature[None, :],
        mask=(row[:, None] < count) & inside,
        other=0.0,
    )
    keys = rotated_keys + (tl.load(sequences + FIRST_SLOT) * GROUPS + group * slots) * D
    values = pointer_at(layer_rows + VALUES, DTYPE) + group * tl.load(sequences + CAPACITY) * D
    factor = scaling * LOG2E
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    norm = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, DP), dtype=tl.float32)
    limit = cached + row
    clear = (cached + first + 1) // KEYS_AT_ONCE * KEYS_AT_ONCE  # keys that all rows see
    for begin in range(0, clear, KEYS_AT_ONCE):
        top, norm, mixed = _attend_to_keys(
            q, keys, values, begin, limit, slots, factor, top, norm, mixed,
            D, DP, DTYPE, KEYS_AT_ONCE, PRECISION, False,
        )  # fmt: skip
    for begin in range(clear, tl.minimum(cached + first + tokens, slots), KEYS_AT_ONCE):
        top, norm, mixed = _attend_to_keys(
            q, keys, values, begin, limit, slots, factor, top, norm, mixed,
            D, DP, DTYPE, KEYS_AT_ONCE, PRECISION, True,
        )  # fmt: skip
    tl.store(
        out + (packed_row * HEADS + head)[:, None] * D + feature[None, :],
        (mixed / norm[:, None]).to(DTYPE),
        mask=(row[:, None] < count) & inside,
    )
    logarithm = (top + tl.log2(norm)) / LOG2E
    tl.store(lse + head * rows + packed_row, logarithm, mask=row < count)


@triton.jit
def _attend_to_keys(
    q,
    keys,
    values,
    begin,
    limit,
    slots,
    factor,
    top,
    norm,
    mixed,
    D: tl.constexpr,
    DP: tl.constexpr,
    DTYPE: tl.constexpr,
    KEYS_AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The running softmax (`top`, `norm`, `mixed`) of a block of queries after one more block of
    keys; `limit` is the last slot that each query sees."""
    slot = begin + tl.arange(0, KEYS_AT_ONCE)
    feature = tl.arange(0, DP)[None, :]
    offset = slot[:, None].to(tl.int64) * D + feature
    mask = feature < D
    if MASKED:
        mask = mask & (slot[:, None] < slots)
    if MASKED or D != DP:
        k = tl.load(keys + offset, mask, 0.0)
        v = tl.load(values + offset, mask, 0.0)
    else:
        k = tl.load(keys + offset)
        v = tl.load(values + offset)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor
    if MASKED:
        logits = tl.where(slot[None, :] <= limit[:, None], logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    weight = tl.exp2(logits - higher[:, None])
    fade = tl.exp2(top - higher)
    norm = norm * fade + tl.sum(weight, 1)
    mixed = mixed * fade[:, None]
    mixed += tl.dot(weight.to(DTYPE), v, input_precision=PRECISION)
    return higher, norm, mixed


@triton.jit(do_not_specialize=["rows"])
def _score_kernel(
    rotated_queries,
    rotated_keys,
    lse,
    sequences,
    layer_rows,
    rows,
    scaling,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    RATIO: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DTYPE: tl.constexpr,
    SEQUENCE_WIDTH: tl.constexpr,
    LAYER_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS_AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What each slot received from the new queries, written to the caches' rows of scores.

    Each program holds a block of keys and loops over the queries that see it: no atomics, so sums
    do not depend on the order in which blocks run.
    """
    head, sequence = tl.program_id(0).to(tl.int64), tl.program_id(2)
    sequences += sequence * SEQUENCE_WIDTH
    layer_rows += sequence * LAYER_WIDTH
    count = tl.load(sequences + COUNT).to(tl.int32)
    cached = tl.load(sequences + SLOTS).to(tl.int32)
    slots = cached + count
    first = tl.program_id(1) * KEYS_AT_ONCE  # earlier keys are seen by more queries: they go first
    if first >= slots or tl.load(layer_rows + LATEST_SCORES) == 0:
        return
    slot = first + tl.arange(0, KEYS_AT_ONCE)
    feature = tl.arange(0, DP)
    keys = rotated_keys
    keys += (tl.load(sequences + FIRST_SLOT) * GROUPS + (head // RATIO) * slots) * D
    k = tl.load(
        keys + slot[:, None].to(tl.int64) * D + feature[None, :],
        mask=(slot[:, None] < slots) & (feature[None, :] < D),
        other=0.0,
    )
    at = head * rows + tl.load(sequences + FIRST_ROW)
    query = rotated_queries + at * D
    lse += at
    # Query row r stands in slot cached + r and sees the slots up to that one.
    start = tl.maximum(first - cached, 0) // ROWS * ROWS
    clear = tl.maximum(first + KEYS_AT_ONCE - 1 - cached, 0)
    clear = tl.minimum((clear + ROWS - 1) // ROWS * ROWS, count)
    factor = scaling * LOG2E
    total = tl.zeros((KEYS_AT_ONCE, ROWS), dtype=tl.float32)
    for begin in range(start, clear, ROWS):
        row = begin + tl.arange(0, ROWS)
        weight = softmax_weights(query, D, lse, k, row, feature, count, factor, D, PRECISION)
        total += tl.where(slot[:, None] <= cached + row[None, :], weight, 0.0)
    for begin in range(clear, count, ROWS):
        row = begin + tl.arange(0, ROWS)
        total += softmax_weights(query, D, lse, k, row, feature, count, factor, D, PRECISION)
    sums = tl.sum(total, 1)
    inside, old = slot < slots, slot < cached
    offset = head * tl.load(sequences + SCORES_CAPACITY) + slot
    # Not `pointer_at`: a ragged cache's rows start anywhere.
    latest = tl.load(layer_rows + LATEST_SCORES)
    latest = latest.to(tl.pointer_type(tl.float32), bitcast=False) + offset
    accumulated = tl.load(layer_rows + ACCUMULATED_SCORES)
    accumulated = accumulated.to(tl.pointer_type(tl.float32), bitcast=False) + offset
    if tl.load(sequences + LATEST_IS_LAST) != 0:
        # In fp32, one query against the block's keys.
        last = tl.load(query + (count - 1) * D + feature, mask=feature < D, other=0.0)
        logits = tl.sum(k.to(tl.float32) * last.to(tl.float32)[None, :], 1)
        weight = tl.exp2(logits * factor - tl.load(lse + count - 1) * LOG2E)
        tl.store(latest, weight, mask=inside)
    else:
        continues = old & (tl.load(sequences + CONTINUES) != 0)
        tl.store(latest, sums + tl.load(latest, mask=continues, other=0.0), mask=inside)
    tl.store(accumulated, sums + tl.load(accumulated, mask=old, other=0.0), mask=inside)
