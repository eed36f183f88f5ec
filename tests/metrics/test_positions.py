"""Integrity metrics against examples computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics import positions
from kvfidelity.metrics.positions import integrity, inversions, phase_distortion

THETA = torch.tensor([1.0, 0.01])


def slot_table(
    mode: str, kept: list[int] | torch.Tensor, seen: int = 6, then: int = 0
) -> SlotTable:
    slots = SlotTable(PositionMode(mode))
    slots.append(seen)
    slots.keep(torch.as_tensor(kept))
    slots.append(then)
    return slots


def expected_distortion(*errors: float) -> float:
    return sum(1 - (math.cos(e) + math.cos(0.01 * e)) / 2 for e in errors) / len(errors)


def test_stale_positions_in_the_example_of_the_docstring() -> None:
    """Tokens 0, 1, 4, 5 of six, at 0, 1, 4, 5, and the query at 4."""
    found = integrity(slot_table("stale", [0, 1, 4, 5]), THETA, 8)
    assert found.retained_share == pytest.approx(4 / 6)
    assert found.kept_spans == 2
    assert found.future_share == 2 / 4  # 4 and 5 are not before 4
    assert (found.collisions, found.order_inversions) == (0, 0)
    assert found.mean_offset_error == 2  # (4, 3, 0, -1) instead of (6, 5, 2, 1)
    assert found.phase_distortion == pytest.approx(expected_distortion(-2))
    assert found.out_of_window_share == 0
    assert found.sinks_kept == 2
    assert found.phase_distortion_weighted is None


@pytest.mark.parametrize("weight", [math.nan, math.inf, 0.0])
def test_weights_that_overflowed_or_are_all_zero_give_no_weighted_distortion(weight: float) -> None:
    weights = torch.tensor([0.0, 0.0, 0.0, weight])
    found = integrity(slot_table("stale", [0, 1, 4, 5]), THETA, 8, weights)
    assert found.phase_distortion_weighted is None
    assert found.phase_distortion == pytest.approx(expected_distortion(-2))


def test_stale_positions_after_new_tokens_collide_and_invert() -> None:
    """Two more tokens take 4 and 5 again: slots at 0, 1, 4, 5, 4, 5; the query is at 6."""
    found = integrity(slot_table("stale", [0, 1, 4, 5], then=2), THETA, 8)
    assert found.collisions == 2
    assert found.order_inversions == 1  # the old 5 stands before the new 4
    assert found.future_share == 0
    assert found.mean_offset_error == pytest.approx((2 * 4 + 0 * 2) / 6)


def test_original_positions_have_no_error_at_all() -> None:
    found = integrity(slot_table("original", [0, 1, 4, 5], then=2), THETA, 8)
    assert found.mean_offset_error == 0
    assert found.phase_distortion == 0
    assert (found.future_share, found.collisions, found.order_inversions) == (0, 0, 0)


def test_original_positions_can_leave_the_trained_window() -> None:
    """Token 0 of 40 seen is 40 positions away; a window of 32 holds offsets up to 31."""
    assert (
        integrity(slot_table("original", [0, 38, 39], 40), THETA, 32).out_of_window_share == 1 / 3
    )


def test_rerotated_positions_err_by_what_was_evicted_in_between() -> None:
    """Tokens 0, 1, 4, 5 at 0, 1, 2, 3, the query at 4: offsets 4, 3, 2, 1 for 6, 5, 2, 1."""
    found = integrity(slot_table("rerotated", [0, 1, 4, 5]), THETA, 8)
    assert found.mean_offset_error == 1
    assert found.phase_distortion == pytest.approx(expected_distortion(-2, -2, 0, 0))


def test_attention_weights_weigh_the_distortion() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0])
    found = integrity(slot_table("rerotated", [0, 1, 4, 5]), THETA, 8, weights)
    assert found.phase_distortion_weighted == pytest.approx(expected_distortion(-2) / 4)


def test_keep_sets_by_head_are_averaged() -> None:
    """One head keeps the first three of six, the other the last three; both stale."""
    found = integrity(slot_table("stale", torch.tensor([[[0, 1, 2], [3, 4, 5]]])), THETA, 8)
    assert found.future_share == 0.5
    assert found.sinks_kept == 2  # 3 and 1
    assert found.mean_offset_error == 3  # offsets (3, 2, 1), (0, -1, -2) instead of (6, 5, 4), ...
    assert found.kept_spans == 1


def test_a_cache_without_evictions_has_no_error() -> None:
    slots = SlotTable(PositionMode.STALE)
    slots.append(600)
    found = integrity(slots, THETA, 8192)
    assert (found.retained_share, found.kept_spans, found.sinks_kept) == (1, 1, 4)
    assert found.phase_distortion == found.mean_offset_error == found.future_share == 0


def test_inversions_are_counted_across_ascending_stretches() -> None:
    """1,000 survivors at 1,000..1,999, then 500 new ones from 1,000 on."""
    slots = slot_table("stale", torch.arange(1000, 2000), 2000, then=500)
    brute = sum(
        int((slots.position[0, 0, i] > slots.position[0, 0, i + 1 :]).sum()) for i in range(1500)
    )
    assert integrity(slots, THETA, 8192).order_inversions == brute > 0


def test_inversions_of_any_order_are_counted_pair_by_pair() -> None:
    slots = slot_table("stale", torch.arange(3), 6)
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        position = slots._position = torch.randint(0, 40, (1, 2, 60), generator=draws)
        slots._token_index, slots._slots = torch.arange(60).expand(1, 2, -1).clone(), 60
        brute = (position[..., :, None] > position[..., None, :]).triu(1).sum((-1, -2))
        twice = [60 - row.unique().numel() for row in position[0]]
        found = integrity(slots, THETA, 8192)
        assert found.order_inversions == float(brute.double().mean())
        assert found.collisions == sum(twice) / 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
@pytest.mark.parametrize("slots", [1, 63, 64, 65, 1000, 3001])
def test_a_gpu_counts_inversions_as_a_cpu_does(slots: int) -> None:
    rows = torch.randint(0, 500, (5, slots), generator=torch.Generator().manual_seed(slots))
    assert torch.equal(inversions(rows.cuda()).cpu(), inversions(rows))


@given(
    asked=st.lists(st.lists(st.integers(-90_000, 90_000), min_size=1, max_size=5), max_size=5),
    at_once=st.sampled_from([1 << 10, 1 << 16]),
)
def test_phase_distortion_is_the_definition_whatever_was_asked_before(
    asked: list[list[int]], at_once: int
) -> None:
    frequencies = 10000.0 ** -(torch.arange(8) / 8)
    smaller = frequencies / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "ERRORS_AT_ONCE", at_once)
        for errors in asked:
            for theta in (frequencies, smaller):
                found = phase_distortion(torch.tensor([errors]), theta)
                angles = np.array(errors)[:, None] * theta.double().numpy()
                expected = (1 - np.cos(angles)).mean(-1)
                assert found.dtype == torch.float64 and found.shape == (1, len(errors))
                np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12, atol=1e-15)
