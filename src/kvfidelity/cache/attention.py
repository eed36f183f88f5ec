"""Reference attention in plain torch: causal by slot, grouped-query, with score sums on request.

Letters: H query heads, G kv heads, q new queries, n slots (the new ones included), d head size.
The new queries are the last q slots: each sees all earlier slots and itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Scores per tile: about 9 MB of fp32, which fits a core's cache; twice that is slower.
TILE_ELEMENTS = 2_300_000
# Rows of the boolean mask that are in memory at once when new queries follow cached slots.
MASK_ROWS = 1024


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention.

    Args:
        query: [H, q, d], rotated.
        key, value: [G, n, d], keys rotated.
        scaling: factor on the dot products.

    Returns:
        [H, q, d] in the dtype of `query`.
    """
    new, slots = query.shape[1], key.shape[1]
    if new == 1:
        return _one_query(query, key, value, scaling)[0]
    if new == slots:
        return scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=scaling, enable_gqa=True
        )[0]
    parts = []
    for start in range(0, new, MASK_ROWS):
        stop = min(start + MASK_ROWS, new)
        seen = slots - new + stop
        mask = torch.ones(stop - start, seen, dtype=torch.bool, device=query.device)
        mask = mask.tril_(seen - (stop - start))
        rows = scaled_dot_product_attention(
            query[None, :, start:stop],
            key[None, :, :seen],
            value[None, :, :seen],
            attn_mask=mask,
            scale=scaling,
            enable_gqa=True,
        )
        parts.append(rows[0])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def attend_with_scores(
    query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Causal attention, and how much of it each slot received, without the q x n matrix.

    The column sums equal `softmax(QK^T).sum(over queries)` of an eager implementation; only a tile
    of queries is in memory at a time.

    Returns:
        The attention output [H, q, d], and fp32 sums over the q queries [H, n].
    """
    heads, new, size = query.shape
    groups, slots, _ = key.shape
    if new == 1:
        return _one_query(query, key, value, scaling)
    ratio = heads // groups
    sums = torch.zeros(groups, ratio, slots, dtype=torch.float32, device=query.device)
    out = torch.empty(groups, ratio, new, size, dtype=query.dtype, device=query.device)
    grouped = query.reshape(groups, ratio, new, size)
    tile = max(16, min(256, TILE_ELEMENTS // (heads * slots)))
    for start in range(0, new, tile):
        stop = min(start + tile, new)
        rows, seen = stop - start, slots - new + stop
        weights = _softmax_tile(grouped[:, :, start:stop] * scaling, key[:, :seen])
        sums[..., :seen] += weights.sum(2)
        mixed = weights.view(groups, ratio * rows, seen).to(value.dtype) @ value[:, :seen]
        out[:, :, start:stop] = mixed.view(groups, ratio, rows, size)
    return out.view(heads, new, size), sums.view(heads, slots)


def window_scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last w queries over all slots, fp32 [H, w, n].

    Args:
        query: [H, w, d], rotated, of the last w slots.
        key: [G, n, d], rotated.
    """
    heads, window, size = query.shape
    groups, slots, _ = key.shape
    grouped = query.reshape(groups, heads // groups, window, size) * scaling
    return _softmax_tile(grouped, key).reshape(heads, window, slots)


def _softmax_tile(query: Tensor, key: Tensor) -> Tensor:
    """fp32 softmax [G, H/G, rows, seen] of scaled queries [G, H/G, rows, d], the last row seeing
    every slot of `key` [G, seen, d] and each earlier row one slot fewer."""
    groups, ratio, rows, size = query.shape
    seen = key.shape[1]
    flat = query.reshape(groups, ratio * rows, size)
    logits = (flat @ key.transpose(1, 2)).view(groups, ratio, rows, seen)
    future = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu_(1)
    logits[..., seen - rows :].masked_fill_(future, -torch.inf)
    return torch.softmax(logits, dim=-1, dtype=torch.float32)


def _one_query(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    heads, _, size = query.shape
    groups, slots, _ = key.shape
    grouped = query.view(groups, heads // groups, size) * scaling
    weights = torch.softmax(grouped @ key.transpose(1, 2), dim=-1, dtype=torch.float32)
    out = weights.to(value.dtype) @ value
    return out.view(heads, 1, size), weights.view(heads, slots)
