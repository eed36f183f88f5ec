"""How far a cache's positions are from the conversation's: exact, and computed without a model.

`integrity` looks at one query; `reply_positions` at all queries of a reply, between which a cache
may evict. All are functions of the slot table at the moment of a query. The query gets
`next_position`, and its token index is `tokens_seen`. For slot i with token index t_i and position
p_i:

    effective offset  e_i = next_position - p_i      what RoPE encodes
    true offset       o_i = tokens_seen - t_i        what the text says

Worked example: 6 tokens seen, tokens 0, 1, 4, 5 kept, positions stale (0, 1, 4, 5), next position
4: effective offsets 4, 3, 0, -1; true offsets 6, 5, 2, 1; every error is -2. Positions 4 and 5
are not before the query: future share 2/4. Two kept spans; no collision; no inversion.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kvfidelity.cache.slots import SlotTable

SINKS = 4
#: Less than any position of a slot: where a row of kv heads with fewer slots has none.
NO_SLOT = -(1 << 40)


@dataclass(frozen=True)
class Integrity:
    """Positional integrity of a cache at the moment of one query, or averaged over queries.

    If keep sets differ by layer or kv head, each value is the mean over them.

    retained_share: slots per token seen.
    kept_spans: contiguous spans of token indices.
    future_share: share of slots whose position is not before the query's.
    collisions: slots with the position of an earlier slot.
    order_inversions: pairs of slots whose positions are in the wrong order.
    out_of_window_share: share of slots whose |effective offset| is at least the trained window.
    mean_offset_error: mean |effective - true offset|, in positions.
    signed_offset_error: mean effective - true offset; below 0 where slots are nearer than the text
        says, or in the query's future.
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
    signed_offset_error: float
    phase_distortion: float
    phase_distortion_weighted: float | None
    sinks_kept: float


#: Of each model's frequencies: by device, what `_distortions` has computed, and how many at once.
_DISTORTIONS: MutableMapping[Tensor, dict[torch.device, Tensor]] = WeakTensorKeyDictionary()
ERRORS_AT_ONCE = 1 << 16


def integrity(
    slots: SlotTable, frequencies: Tensor, trained_window: int, weights: Tensor | None = None
) -> Integrity:
    """Measure a slot table.

    Args:
        slots: slots and positions now.
        frequencies: rotary inverse frequencies theta_k, [r / 2].
        trained_window: in tokens.
        weights: attention received per slot, [L', G', n] or broadcastable to it; any scale. Of kv
            heads with different numbers of slots [L, G, n], aligned as the table is.
    """
    if slots.is_ragged:
        return _ragged_integrity(slots.on_cpu(), frequencies, trained_window, weights)
    token, position = slots.token_index, slots.position
    count = token.shape[-1]
    if count == 0:
        weighted = None if weights is None else 0.0
        return Integrity(0.0, 0, 0.0, 0, 0, 0.0, 0.0, 0.0, 0.0, weighted, 0)
    effective = slots.next_position - position
    error = effective - (slots.tokens_seen - token)
    distortion = phase_distortion(error, frequencies)
    rows = position.reshape(-1, count)
    means = {
        "kept_spans": (1 + (token.diff(dim=-1) != 1).sum(-1)),
        "future_share": effective <= 0,
        "collisions": (rows.sort(-1).values.diff(dim=-1) == 0).sum(-1),
        "order_inversions": inversions(rows),
        "out_of_window_share": effective.abs() >= trained_window,
        "mean_offset_error": error.abs(),
        "signed_offset_error": error,
        "phase_distortion": distortion,
        "sinks_kept": (token < SINKS).sum(-1),
    }
    if weights is not None:
        share = (weights / weights.sum(-1, keepdim=True)).double().to(distortion.device)
        means["phase_distortion_weighted"] = (distortion * share).sum(-1)
    # One transfer for all of them: each would wait for the device.
    found = torch.stack([values.double().mean() for values in means.values()]).tolist()
    values = dict(zip(means, found, strict=True))
    weighted = values.pop("phase_distortion_weighted", None)
    return Integrity(
        retained_share=count / slots.tokens_seen,
        phase_distortion_weighted=(
            weighted if weighted is not None and math.isfinite(weighted) else None
        ),
        **values,
    )


@dataclass(frozen=True)
class SlotRows:
    """The slots of a table, a row for each keep set that can differ.

    token, position: int64 [R, n]. counts, next_position: of all rows, or int64 [R, 1] if rows have
    different numbers of slots. is_slot: then bool [R, n], False left of a row's first slot.
    """

    token: Tensor
    position: Tensor
    counts: int | Tensor
    next_position: int | Tensor
    tokens_seen: int
    is_slot: Tensor | None = None

    @classmethod
    def of(cls, slots: SlotTable) -> SlotRows:
        """Of a table; of a ragged one on the CPU."""
        columns = slots.columns
        token, position = (
            values.reshape(-1, columns) if columns else values.new_empty(1, 0)
            for values in (slots.token_index, slots.position)
        )
        if not slots.is_ragged:
            return cls(token, position, columns, slots.next_position, slots.tokens_seen)
        counts, following = (
            values.reshape(-1, 1) for values in (slots.counts, slots.next_positions)
        )
        is_slot = torch.arange(columns) >= columns - counts
        return cls(token, position, counts, following, slots.tokens_seen, is_slot)

    def of_slots(self, values: Tensor) -> Tensor:
        """Values [R, n], 0 where a row has no slot."""
        return values if self.is_slot is None else values.masked_fill(~self.is_slot, 0)

    @property
    def error(self) -> Tensor:
        """Effective minus true offset of each slot, int64 [R, n]."""
        effective = self.next_position - self.position
        return self.of_slots(effective - (self.tokens_seen - self.token))

    @property
    def ahead(self) -> Tensor:
        """Position minus next position, sorted in each row; `NO_SLOT` where it has no slot."""
        ahead = self.position - self.next_position
        if self.is_slot is not None:
            ahead = ahead.masked_fill(~self.is_slot, NO_SLOT)
        return ahead.sort(-1).values

    @property
    def spans(self) -> Tensor:
        """Stretches of consecutive tokens in each row, int64 [R]."""
        if not self.position.shape[-1]:
            return self.position.sum(-1)
        broken = self.token.diff(dim=-1) != 1
        if self.is_slot is None:
            return 1 + broken.sum(-1)
        assert isinstance(self.counts, Tensor)
        return (1 + (broken & self.is_slot[:, :-1]).sum(-1)) * (self.counts[:, 0] > 0)

    @property
    def sinks(self) -> Tensor:
        """How many of the first tokens each row holds, int64 [R]."""
        return self.of_slots(self.token < SINKS).sum(-1)


def _ragged_integrity(
    slots: SlotTable, frequencies: Tensor, trained_window: int, weights: Tensor | None
) -> Integrity:
    """The mean over kv heads of what each of them has by itself."""
    rows = SlotRows.of(slots)
    assert isinstance(rows.counts, Tensor) and rows.is_slot is not None
    counts, error, ahead = rows.counts[:, 0], rows.error, rows.ahead
    effective = rows.next_position - rows.position
    distortion = phase_distortion(error, frequencies)

    def mean(values: Tensor) -> Tensor:
        return rows.of_slots(values).double().sum(-1) / counts.clamp(min=1)

    of_rows = {
        "retained_share": counts.double() / slots.tokens_seen,
        "kept_spans": rows.spans,
        "future_share": mean(effective <= 0),
        "collisions": ((ahead.diff(dim=-1) == 0) & (ahead[:, 1:] > NO_SLOT)).sum(-1),
        "order_inversions": inversions(rows.position),
        "out_of_window_share": mean(effective.abs() >= trained_window),
        "mean_offset_error": mean(error.abs()),
        "signed_offset_error": mean(error),
        "phase_distortion": mean(distortion),
        "sinks_kept": rows.sinks,
    }
    means = {name: float(values.double().mean()) for name, values in of_rows.items()}
    weighted = None
    if weights is not None:
        share = rows.of_slots(weights.cpu().double().reshape(rows.is_slot.shape))
        of_heads = (distortion * share).sum(-1) / share.sum(-1)
        found = float(of_heads.masked_fill(counts == 0, 0.0).mean())
        weighted = found if math.isfinite(found) else None
    return Integrity(**means, phase_distortion_weighted=weighted)


def phase_distortion(error: Tensor, frequencies: Tensor) -> Tensor:
    """RoPE phase distortion of each slot, fp64 of the shape of `error`.

    Args:
        error: int64, effective minus true offsets.
        frequencies: theta_k, [r / 2].
    """
    size = error.abs()
    return _distortions(frequencies, int(size.max()) + 1, size.device)[size]


def _distortions(frequencies: Tensor, count: int, device: torch.device) -> Tensor:
    """The phase distortion of errors 0, 1, .. of at least `count`, fp64.

    A negative error has that of the positive one. They are kept, for each moment of a run asks: to
    compute them waits for the GPU that the frequencies are on, a tenth of a worker's time.
    """
    tables = _DISTORTIONS.setdefault(frequencies, {})
    table: Tensor = tables.get(device, torch.empty(0, dtype=torch.float64, device=device))
    if len(table) < count:
        theta, parts = frequencies.double().to(device), [table]
        size = 1 << (count - 1).bit_length()
        for start in range(len(table), size, ERRORS_AT_ONCE):
            stop = min(start + ERRORS_AT_ONCE, size)
            angles = torch.arange(start, stop, device=device)[:, None] * theta
            parts.append((1 - angles.cos()).mean(-1))
        tables[device] = table = torch.cat(parts)
    return table


def inversions(rows: Tensor) -> Tensor:
    """For each row of positions [R, n], pairs i < j with position_i > position_j: int64 [R]."""
    if not bool((rows.diff(dim=-1) < 0).any()):
        return rows.new_zeros(rows.shape[0])
    if rows.is_cuda:
        from kvfidelity.cache.triton.inversions import count_inversions

        return count_inversions(rows)
    return torch.tensor([_row_inversions(row) for row in rows.numpy()])


def _row_inversions(position: np.ndarray) -> int:
    """Pairs i < j with position_i > position_j, counted by ascending stretches."""
    cuts = np.flatnonzero(np.diff(position) < 0) + 1
    first, *rest = np.split(position, cuts)
    count, earlier = 0, first
    for ascending in rest:
        count += int((earlier.size - np.searchsorted(earlier, ascending, side="right")).sum())
        earlier = np.sort(np.concatenate([earlier, ascending]), kind="stable")
    return count
