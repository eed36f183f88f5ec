"""The slot table's positions on the device, where kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfidelity.cache.capacity import grown_capacity
from kvfidelity.cache.ragged import upload
from kvfidelity.cache.slots import SlotTable

#: Rows start at multiples of this many positions: kernels load them as 16 bytes at once.
ROW_ALIGNMENT = 4


class DevicePositions:
    """int32 [L', G', capacity] on the device, following a SlotTable."""

    def __init__(self, position: Tensor, device: torch.device) -> None:
        self.device = device
        self._positions = torch.empty(1, 1, 0, dtype=torch.int32, device=device)
        self.replace(position)

    @property
    def positions(self) -> Tensor:
        """The whole buffer, int32 [L', G', capacity]; the part after the last slot is undefined."""
        return self._positions

    def of_layer(self, layer: int, slots: int) -> Tensor:
        """One layer's positions, int32 [G', n]."""
        rows = self._positions[layer if self._positions.shape[0] > 1 else 0]
        return rows[:, :slots]

    def append(self, start: int, first: int, count: int) -> None:
        """Give `count` slots from `start` on the positions `first`, `first` + 1, ..."""
        self.reserve(start + count, start)
        new = torch.arange(first, first + count, dtype=torch.int32, device=self.device)
        self._positions[..., start : start + count] = new

    def replace(self, position: Tensor) -> None:
        """Copy the slot table's positions after an eviction, int64 [L', G', n]."""
        slots = position.shape[-1]
        if position.shape[:-1] != self._positions.shape[:-1] or slots > self._positions.shape[-1]:
            room = max(slots, self._positions.shape[-1])
            room += -room % ROW_ALIGNMENT
            self._positions = torch.empty(
                *position.shape[:-1], room, dtype=torch.int32, device=self.device
            )
        # From the CPU without waiting for what the device still computes.
        self._positions[..., :slots].copy_(position.to(torch.int32), non_blocking=True)

    def reserve(self, slots: int, used: int) -> None:
        """Make room for `slots` slots; the first `used` are kept."""
        capacity = self._positions.shape[-1]
        if slots <= capacity:
            return
        wanted = grown_capacity(slots, capacity)
        grown = self._positions.new_empty(*self._positions.shape[:-1], wanted)
        grown[..., :used] = self._positions[..., :used]
        self._positions = grown


class HeadPositions:
    """Positions of kv heads that hold different numbers of slots, int32 [L, G, capacity].

    Aligned at the left, as the heads' keys are: kernels write a new slot's after the last one.
    """

    def __init__(self, table: SlotTable, device: torch.device) -> None:
        width, counts = table.columns, table.counts
        self.positions = torch.empty(
            *counts.shape, grown_capacity(width, 0), dtype=torch.int32, device=device
        )
        column = torch.arange(width, device=device)
        if table.mode.traits.renumbers:  # slot i has position i
            self.positions[..., :width] = column
        elif width:
            own = column + upload(table.pad, device)[..., None]
            position = table.position.to(device)
            self.positions[..., :width] = position.gather(-1, own.clamp(max=width - 1))

    def append(self, table: SlotTable, count: int) -> None:
        """Follow a table that has appended `count` tokens."""
        self.reserve(int(table.counts.max()))
        device, counts = self.positions.device, table.counts
        numbers = torch.stack([counts - count, table.next_positions - count])
        slots, firsts = upload(numbers, device)
        new = torch.arange(count, device=device)
        values = (firsts[..., None] + new).to(torch.int32)
        self.positions.scatter_(-1, slots[..., None] + new, values)

    def reserve(self, slots: int) -> None:
        """Make room for `slots` slots of each head."""
        capacity = self.positions.shape[-1]
        if slots <= capacity:
            return
        grown = self.positions.new_empty(
            *self.positions.shape[:-1], grown_capacity(slots, capacity)
        )
        grown[..., :capacity] = self.positions
        self.positions = grown
