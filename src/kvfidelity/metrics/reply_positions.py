"""Positional integrity over a whole reply: the mean of what each of its tokens meets.

Between two evictions every token adds one slot, and everything else stays: the sums over the tokens
have closed forms, so a stretch of any length costs about as much as one moment. A field of
`Integrity` that has none here is summed token by token. With n slots,
T tokens seen and the next position q at its start, its token j (0-based) meets n + j slots, and

- slot i of the n: effective offset e_i + j, and the same error as at the start (position and token
  index of the query both grow by one);
- slot i of the j new ones: effective and true offset j - i, so no error. Its position q + i may be
  that of one of the n (a collision) or below those of some (inversions).

With d_i = p_i - q the position of slot i minus the next position at the start, all counts are of
slots with d_i at or above an integer: one sort gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics.positions import (
    NO_SLOT,
    SINKS,
    Integrity,
    SlotRows,
    integrity,
    inversions,
    phase_distortion,
)

#: What is measured: no scores are kept for each token.
NAMES = tuple(
    field.name for field in fields(Integrity) if field.name != "phase_distortion_weighted"
)


def integrity_over_reply(
    slots: SlotTable,
    evictions: Sequence[Eviction],
    tokens_seen: int,
    frequencies: Tensor,
    trained_window: int,
) -> Integrity:
    """Integrity that the tokens of a reply met: the exact mean over its tokens.

    Args:
        slots: slots and positions before the reply's first token; left as they are.
        evictions: those that happened while the reply was fed.
        tokens_seen: by the end of the reply.
        frequencies, trained_window: as for `integrity`.

    Returns:
        Without `phase_distortion_weighted`: no scores are kept for each token. Of a reply without
        tokens, the integrity after its evictions.
    """
    if slots.is_ragged or any(isinstance(each.kept, RaggedKeepSet) for each in evictions):
        slots = slots.on_cpu()
    slots = slots.fork()
    total = tokens_seen - slots.tokens_seen
    sums = dict.fromkeys(NAMES, 0.0)
    moments = [*((eviction.tokens_seen, eviction) for eviction in evictions), (tokens_seen, None)]
    for until, eviction in moments:
        tokens = until - slots.tokens_seen
        if tokens:
            known = _sums(slots, tokens, frequencies, trained_window)
            for name, value in known.items():
                sums[name] += value
            others = [name for name in NAMES if name not in known]
            at_each = _one_by_one(slots, tokens, frequencies, trained_window) if others else ()
            for moment in at_each:
                for name in others:
                    sums[name] += getattr(moment, name)
            slots.append(tokens)
        if eviction is not None:
            slots.keep(eviction.kept)
    if not total:
        return integrity(slots, frequencies, trained_window)
    means = {name: value / total for name, value in sums.items()}
    return Integrity(**means, phase_distortion_weighted=None)


def _one_by_one(
    slots: SlotTable, tokens: int, frequencies: Tensor, window: int
) -> Iterator[Integrity]:
    slots = slots.fork()
    for _ in range(tokens):
        yield integrity(slots, frequencies, window)
        slots.append(1)


def _sums(slots: SlotTable, tokens: int, frequencies: Tensor, window: int) -> dict[str, float]:
    """Sums of the integrity that the next `tokens` tokens meet if nothing is evicted."""
    rows = SlotRows.of(slots)
    count, seen, device = rows.counts, slots.tokens_seen, rows.position.device
    width = rows.position.shape[-1]
    new = torch.arange(tokens, device=device)
    left = tokens - 1 - new  # tokens of the stretch that meet new slot i
    size = (count + new).clamp(min=1).double()  # [R, tokens]
    ahead, error = rows.ahead, rows.error

    def at_least(least: Tensor) -> Tensor:
        """Slots of the start with d at or above each of `least` [m]: [rows, m]."""
        wanted = least.expand(len(ahead), -1).contiguous()
        return width - torch.searchsorted(ahead, wanted)

    not_before = at_least(torch.arange(tokens + 1, device=device))
    taken = not_before[:, :-1] > not_before[:, 1:]  # whether a slot of the start is at q + i
    far = at_least(new + window) + count - at_least(new - window + 1)
    far = far + (new - window + 1).clamp(min=0)
    gap = rows.token[:, -1] != seen - 1 if width else torch.ones(1, dtype=torch.bool, device=device)
    distortion = phase_distortion(error, frequencies) if width else error.double()
    per_slot = (1 / size).sum(-1)
    same = (ahead.diff(dim=-1) == 0) & (ahead[:, 1:] > NO_SLOT)
    sums = {
        "kept_spans": rows.spans * tokens + gap * (tokens - 1),
        "future_share": (not_before[:, :-1] / size).sum(-1),
        "collisions": same.sum(-1) * tokens + (taken * left).sum(-1),
        "order_inversions": inversions(rows.position) * tokens + (not_before[:, 1:] * left).sum(-1),
        "out_of_window_share": (far / size).sum(-1),
        "mean_offset_error": error.abs().sum(-1) * per_slot,
        "signed_offset_error": error.sum(-1) * per_slot,
        "phase_distortion": distortion.sum(-1) * per_slot,
        "sinks_kept": rows.sinks * tokens + new.clamp(max=max(0, SINKS - seen)).sum(),
        "retained_share": ((count + new).double() / (seen + new).clamp(min=1)).sum(-1),
    }
    # One transfer for all of them: each would wait for the device.
    found = torch.stack([values.double().mean() for values in sums.values()]).tolist()
    return dict(zip(sums, found, strict=True))
