"""Integrity over a reply against the mean of what each token meets, one token at a time."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch

from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics import reply_positions
from kvfidelity.metrics.positions import Integrity, integrity
from kvfidelity.metrics.reply_positions import NAMES, integrity_over_reply

THETA = 1 / 10000 ** (torch.arange(0, 16, 2).double() / 16)


def keep_set(slots: int, size: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Sorted random slots, different in each row of `shape`."""
    drawn = torch.rand(*shape, slots, generator=torch.Generator().manual_seed(seed))
    return drawn.argsort(-1)[..., :size].sort(-1).values


def token_by_token(
    slots: SlotTable, evictions: list[Eviction], tokens_seen: int, window: int
) -> Integrity:
    slots, parts, left = slots.fork(), [], list(evictions)
    while True:
        while left and left[0].tokens_seen == slots.tokens_seen:
            slots.keep(left.pop(0).kept)
        if slots.tokens_seen == tokens_seen:
            break
        parts.append(integrity(slots, THETA, window))
        slots.append(1)
    means = [sum(getattr(part, name) for part in parts) / len(parts) for name in NAMES]
    return Integrity(**dict(zip(NAMES, means, strict=True)), phase_distortion_weighted=None)


def eviction(slots: SlotTable, kept: torch.Tensor) -> Eviction:
    return Eviction(0, 0, slots.tokens_seen, len(slots), kept, 0.0, 0.0)


@pytest.mark.parametrize("mode", list(PositionMode))
@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
@pytest.mark.parametrize("window", [40, 150, 8192])
@pytest.mark.parametrize("gaps", [(100,), (1,), (7, 30, 1, 1, 61), (60, 0, 0, 40)])
def test_a_reply_is_the_mean_over_its_tokens(
    mode: PositionMode, shape: tuple[int, int], window: int, gaps: tuple[int, ...]
) -> None:
    """After an eviction of 300 tokens to 100 and 60 more, 100 or fewer tokens are fed in stretches
    of `gaps`, with an eviction between two stretches, and after the last."""
    slots = SlotTable(mode)
    slots.append(300)
    slots.keep(keep_set(300, 100, shape, seed=0))
    slots.append(60)
    start, evictions = slots.fork(), []
    for seed, tokens in enumerate(gaps):
        slots.append(tokens)
        if len(gaps) > 1:
            kept = keep_set(len(slots), len(slots) * 2 // 3, shape, seed + 1)
            evictions.append(eviction(slots, kept))
            slots.keep(kept)
    found = integrity_over_reply(start, evictions, slots.tokens_seen, THETA, window)
    wanted = token_by_token(start, evictions, slots.tokens_seen, window)
    assert found.phase_distortion_weighted is None
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-9), name


def test_what_has_no_closed_form_is_summed_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = SlotTable(PositionMode.STALE)
    slots.append(60)
    slots.keep(keep_set(60, 30, (1, 1), seed=0))
    sums = reply_positions._sums
    without = lambda *args: {k: v for k, v in sums(*args).items() if k != "collisions"}  # noqa: E731
    wanted = integrity_over_reply(slots, [], 80, THETA, 40)
    monkeypatch.setattr(reply_positions, "_sums", without)
    found = integrity_over_reply(slots, [], 80, THETA, 40)
    assert found.collisions == pytest.approx(wanted.collisions) and found.collisions > 0


def test_the_first_tokens_of_a_conversation_are_sinks() -> None:
    for seen in range(6):
        slots = SlotTable(PositionMode.STALE)
        slots.append(seen)
        found = integrity_over_reply(slots, [], seen + 7, THETA, 5)
        wanted = token_by_token(slots, [], seen + 7, 5)
        for name in NAMES:
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-9), name


def test_stale_positions_of_a_hand_made_reply() -> None:
    """Tokens 0, 1, 4, 5 of six at 0, 1, 4, 5; the reply's tokens are at 4, 5, 6. They meet 2, 1
    and 0 slots of the future, no, one and two collisions, and no, one (5 before 4) and one
    inversion."""
    slots = SlotTable(PositionMode.STALE)
    slots.append(6)
    slots.keep(torch.tensor([0, 1, 4, 5]))
    found = integrity_over_reply(slots, [], 9, THETA, 8192)
    assert found.future_share == pytest.approx((2 / 4 + 1 / 5 + 0 / 6) / 3)
    assert found.collisions == pytest.approx((0 + 1 + 2) / 3)
    assert found.order_inversions == pytest.approx((0 + 1 + 1) / 3)
    assert found.mean_offset_error == pytest.approx((8 / 4 + 8 / 5 + 8 / 6) / 3)
    assert found.kept_spans == 2
    assert len(slots) == 4  # the table that was given stays


def test_a_reply_without_tokens_is_measured_after_its_evictions() -> None:
    slots = SlotTable(PositionMode.STALE)
    slots.append(6)
    kept = torch.tensor([[[0, 1, 4, 5]]])
    found = integrity_over_reply(slots, [eviction(slots, kept)], 6, THETA, 8192)
    slots.keep(kept)
    assert found == integrity(slots, THETA, 8192)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
def test_keep_sets_on_a_gpu_give_the_same() -> None:
    slots = SlotTable(PositionMode.STALE)
    slots.append(300)
    kept = keep_set(300, 100, (2, 3), seed=0)
    slots.keep(kept)
    on_gpu = SlotTable(PositionMode.STALE)
    on_gpu.append(300)
    on_gpu.keep(kept.cuda())
    one, other = (integrity_over_reply(each, [], 400, THETA, 150) for each in (slots, on_gpu))
    assert astuple(other)[:-1] == pytest.approx(astuple(one)[:-1], abs=1e-9)
