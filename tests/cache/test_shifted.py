"""The mode `shifted`: one keep set meets every effective offset moved by one number."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity import new_cache
from kvfidelity.cache.positions import PositionMode, check_shift, shifted_name
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.slots import SlotTable
from kvfidelity.errors import UserError
from kvfidelity.metrics.positions import integrity
from tests.cache.conftest import tiny


def logits_after(model: Any, mode: str, kept: list[int], before: int, after: int) -> torch.Tensor:
    """Logits of `after` tokens fed one by one after an eviction at `before` tokens."""
    cache = new_cache(model, positions=mode)
    ids = torch.arange(3, 3 + before + after)[None]
    with torch.inference_mode():
        model(input_ids=ids[:, :before], past_key_values=cache)
        cache.keep(torch.tensor(kept))
        rows = [
            model(input_ids=ids[:, at : at + 1], past_key_values=cache).logits[0]
            for at in range(before, before + after)
        ]
    return torch.cat(rows)


def test_a_shift_of_0_is_original_exactly(llama: Any) -> None:
    kept = [0, 1, 5, 6, 7, 11]
    found, original = (
        logits_after(llama, mode, kept, 12, 4) for mode in ("shifted+0", PositionMode.ORIGINAL)
    )
    assert torch.equal(found, original)


def test_a_shift_by_the_evicted_tokens_is_stale_exactly(llama: Any) -> None:
    kept = [0, 1, 5, 6, 7, 11]
    found, stale = (
        logits_after(llama, mode, kept, 12, 4) for mode in ("shifted-6", PositionMode.STALE)
    )
    assert torch.equal(found, stale)
    assert not torch.allclose(stale, logits_after(llama, "shifted+6", kept, 12, 4), atol=1e-3)


@given(shift=st.integers(-40, 9000), kept=st.sets(st.integers(0, 39), min_size=1, max_size=39))
def test_every_survivor_has_the_shift_as_its_offset_error(shift: int, kept: set[int]) -> None:
    slots = SlotTable(PositionMode(shifted_name(shift)))
    slots.append(40)
    assert slots.next_position == 40, "before an eviction all modes are equal"
    slots.keep(torch.tensor(sorted(kept)))
    effective = slots.next_position - slots.position
    assert (effective - (slots.tokens_seen - slots.token_index) == shift).all()
    new = slots.append(3)
    assert new.tolist() == [40 + shift, 41 + shift, 42 + shift]
    assert integrity(slots, torch.ones(1), 64).mean_offset_error == pytest.approx(
        abs(shift) * len(kept) / (len(kept) + 3)
    )
    assert int(slots.position.max()) < slots.position_bound


def test_a_head_that_keeps_everything_is_shifted_as_the_others_are() -> None:
    """One number for all survivors, whatever each head keeps; before and after more tokens."""
    kept = RaggedKeepSet.of_rows([[torch.arange(12), torch.arange(6)] for _ in range(2)])
    slots = SlotTable(PositionMode("shifted+64"))
    slots.append(12)
    slots.keep(kept)
    for seen in (12, 15):
        assert slots.next_positions.tolist() == [[seen + 64] * 2] * 2
        assert slots.next_position == seen + 64
        assert slots.row(0, 0).next_position == seen + 64
        slots.append(3)


def test_names_are_written_one_way_only() -> None:
    for wrong in ("shifted", "shifted-0", "shifted64", "shifted+064", "shifted+1234567", "shift+1"):
        with pytest.raises(ValueError, match="not a valid PositionMode"):
            PositionMode(wrong)
    pattern = "|".join(PositionMode.patterns())
    for mode in (*PositionMode, PositionMode("shifted-512"), PositionMode("shifted+0")):
        assert re.fullmatch(pattern, mode)
        assert PositionMode(str(mode)) is mode is pickle.loads(pickle.dumps(mode))
        assert copy.deepcopy(mode) is mode
    assert len(PositionMode) == 3, "the shifted modes are no members, so nothing lists them"


def test_a_shift_below_position_0_is_refused_by_name() -> None:
    check_shift(PositionMode("shifted-512"), 512)
    check_shift(PositionMode("shifted-512"), None)
    with pytest.raises(UserError, match=r"shifted-513: after 512 tokens .* shift by at least -512"):
        check_shift(PositionMode("shifted-513"), 512)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
@pytest.mark.parametrize("mode", ["shifted-6", "shifted+9000"])
def test_a_gpu_reads_angles_past_the_tokens_seen(mode: str) -> None:
    """9,000 positions past them there is no row in a table of as many positions as tokens."""
    found = []
    for device in ("cpu", "cuda"):
        model = tiny("llama").to(device)
        cache = new_cache(model, positions=mode)
        ids = torch.arange(3, 23, device=device)[None]
        with torch.inference_mode():
            model(input_ids=ids[:, :12], past_key_values=cache)
            cache.keep(torch.tensor([0, 1, 5, 6, 7, 11]))
            rows = [
                model(input_ids=part, past_key_values=cache) for part in ids[:, 12:].split(3, 1)
            ]
        found.append(torch.cat([row.logits[0].cpu() for row in rows]))
    assert (found[0] - found[1]).abs().max() < 1e-3
