"""How far a cache's positions are from the conversation's: exact, and computed without a model.

All are functions of the slot table at the moment of a query. The query gets `next_position`, and
its token index is `tokens_seen`. For slot i with token index t_i and position p_i:

    effective offset  e_i = next_position - p_i      what RoPE encodes
    true offset       o_i = tokens_seen - t_i        what the text says

Worked example: 6 tokens seen, tokens 0, 1, 4, 5 kept, positions stale (0, 1, 4, 5), next position
4: effective offsets 4, 3, 0, -1; true offsets 6, 5, 2, 1; every error is -2. Positions 4 and 5
are not before the query: future share 2/4. Two kept spans; no collision; no inversion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.slots import SlotTable

SINKS = 4


@dataclass(frozen=True)
class Integrity:
    """Positional integrity of a cache at the moment of one query.

    If keep sets differ by layer or kv head, each value is the mean over them.

    retained_share: slots per token seen.
    kept_spans: contiguous spans of token indices.
    future_share: share of slots whose position is not before the query's.
    collisions: slots with the position of an earlier slot.
    order_inversions: pairs of slots whose positions are in the wrong order.
    out_of_window_share: share of slots whose |effective offset| is at least the trained window.
    mean_offset_error: mean |effective - true offset|, in positions.
    phase_distortion: mean over slots and rotary frequencies k of
        1 - cos(theta_k (effective - true offset)), in [0, 2].
    phase_distortion_weighted: the same, slots weighted by the attention they received in the
        latest forward; None without scores, or if they are not finite or all 0.
    sinks_kept: how many of the conversation's first four tokens are cached.
    """

    retained_share: float
    kept_spans: float
    future_share: float
    collisions: float
    order_inversions: float
    out_of_window_share: float
    mean_offset_error: float
    phase_distortion: float
    phase_distortion_weighted: float | None
    sinks_kept: float


def integrity(
    slots: SlotTable, frequencies: Tensor, trained_window: int, weights: Tensor | None = None
) -> Integrity:
    """Measure a slot table.

    Args:
        slots: slots and positions now.
        frequencies: rotary inverse frequencies theta_k, [r / 2].
        trained_window: in tokens.
        weights: attention received per slot, [L', G', n] or broadcastable to it; any scale.
    """
    token, position = slots.token_index.cpu(), slots.position.cpu()
    count = token.shape[-1]
    if count == 0:
        weighted = None if weights is None else 0.0
        return Integrity(0.0, 0, 0.0, 0, 0, 0.0, 0.0, 0.0, weighted, 0)
    effective = slots.next_position - position
    error = effective - (slots.tokens_seen - token)
    distortion = phase_distortion(error, frequencies)
    weighted = None
    if weights is not None:
        share = weights / weights.sum(-1, keepdim=True)
        mean = float((distortion * share.double().cpu()).sum(-1).mean())
        weighted = mean if math.isfinite(mean) else None
    rows = position.reshape(-1, count).numpy()
    return Integrity(
        retained_share=count / slots.tokens_seen,
        kept_spans=float((1 + (token.diff(dim=-1) != 1).sum(-1)).double().mean()),
        future_share=float((effective <= 0).double().mean()),
        collisions=_mean([int((np.diff(np.sort(row)) == 0).sum()) for row in rows]),
        order_inversions=_mean([_inversions(row) for row in rows]),
        out_of_window_share=float((effective.abs() >= trained_window).double().mean()),
        mean_offset_error=float(error.abs().double().mean()),
        phase_distortion=float(distortion.mean()),
        phase_distortion_weighted=weighted,
        sinks_kept=float((token < SINKS).sum(-1).double().mean()),
    )


def phase_distortion(error: Tensor, frequencies: Tensor) -> Tensor:
    """RoPE phase distortion of each slot, fp64 of the shape of `error`.

    Args:
        error: int64, effective minus true offsets.
        frequencies: theta_k, [r / 2].
    """
    values = error.numpy()
    low, high = int(values.min()), int(values.max())
    if high - low < values.size:  # cheaper than finding the distinct values
        distinct, inverse = np.arange(low, high + 1), values - low
    else:
        distinct, inverse = np.unique(values, return_inverse=True)
    angles = distinct[:, None] * frequencies.double().cpu().numpy()
    return torch.from_numpy((1 - np.cos(angles)).mean(-1)[inverse.reshape(error.shape)])


def _inversions(position: np.ndarray) -> int:
    """Pairs i < j with position_i > position_j, counted by ascending stretches."""
    cuts = np.flatnonzero(np.diff(position) < 0) + 1
    first, *rest = np.split(position, cuts)
    count, earlier = 0, first
    for ascending in rest:
        count += int((earlier.size - np.searchsorted(earlier, ascending, side="right")).sum())
        earlier = np.sort(np.concatenate([earlier, ascending]), kind="stable")
    return count


def _mean(counts: list[int]) -> float:
    return sum(counts) / len(counts)
