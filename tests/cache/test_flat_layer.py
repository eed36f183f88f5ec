"""What kernels read of ragged caches, as far as a CPU can see it."""

from __future__ import annotations

import pytest
import torch

from kvfidelity.cache.device_positions import HeadPositions
from kvfidelity.cache.flat_layer import ALIGNMENT, FlatLayer
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.cache.triton.addresses import head_addresses
from kvfidelity.cache.triton.head_step_table import HeadStepTable
from kvfidelity.cache.triton.layout import SequenceField
from tests.cache.ragged_sets import random_ragged

CPU = torch.device("cpu")


def test_heads_lie_one_after_another_at_aligned_starts() -> None:
    key = torch.zeros(1, 3, 9, 6, dtype=torch.bfloat16)
    layer = FlatLayer([5, 0, 33], 10, key, key)
    assert layer.starts == [0, 16, 32]
    assert all(start % ALIGNMENT == 0 for start in layer.starts)
    assert layer.key_buffer.shape == (80, 6)
    assert [head.slots for head in layer.heads] == [5, 0, 33]
    assert layer.nbytes == 38 * 2 * 6 * 2
    for part in (layer.key_buffer, layer.value_buffer):
        part.copy_(torch.arange(80)[:, None].expand(-1, 6))
    assert layer.live_keys[:, 0].tolist() == [*range(5), *range(32, 65)]
    shared = layer.sharing([9, 4, 37])
    assert (shared.room, layer.room) == (6, 10) and shared.key_buffer is layer.key_buffer
    assert shared.live_values[:, 0].tolist() == [*range(9), *range(16, 20), *range(32, 69)]
    keys, values = head_addresses([layer, layer])
    for found, buffer in ((keys, layer.key_buffer), (values, layer.value_buffer)):
        assert found.tolist() == [[buffer.data_ptr() + 12 * start for start in layer.starts]] * 2


@pytest.mark.parametrize("mode", list(PositionMode))
def test_positions_of_heads_follow_the_slot_table(mode: PositionMode) -> None:
    table = SlotTable(mode)
    table.append(40)
    table.keep(random_ragged(torch.full((2, 3), 40), 11, 1))
    positions = HeadPositions(table, CPU)
    for count in (1, 300):
        table.append(count)
        positions.append(table, count)
        for found in (positions, HeadPositions(table, CPU)):
            for layer in range(2):
                for head in range(3):
                    own = table.row(layer, head).position[0, 0]
                    assert found.positions[layer, head, : len(own)].tolist() == own.tolist()


def test_a_step_adds_a_slot_to_each_head_of_each_living_sequence() -> None:
    """Two layers, two sequences of three heads; the second sequence ends after one step."""
    table = HeadStepTable(2, 2, 3, 4, CPU)
    slots = torch.arange(12).view(2, 6)
    table.sequences[..., SequenceField.SLOTS] = slots
    table.sequences[..., SequenceField.NEXT_POSITION] = 100 + slots
    table.sequences[..., SequenceField.ALIVE] = 1
    table.advance()
    table.end(torch.tensor([True, False]))
    assert table.alive.tolist() == [1, 0]
    table.advance()
    added = torch.tensor([2, 2, 2, 1, 1, 1])
    assert torch.equal(table.sequences[..., SequenceField.SLOTS], slots + added)
    assert torch.equal(table.sequences[..., SequenceField.NEXT_POSITION], 100 + slots + added)
    table.deactivate(0)
    assert not table.sequences[..., SequenceField.ALIVE].any()
