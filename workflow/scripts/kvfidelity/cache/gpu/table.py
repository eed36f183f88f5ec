"""What a captured decode step must know about the caches it serves, as device data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.attending import AttendingCache
from kvfidelity.cache.gpu.layout import LANE_FIELDS, ROW_FIELDS
from kvfidelity.cache.managed import ManagedCache


class StepTable(AttendingCache):
    """Stands where a decode step's forward expects its cache; holds addresses, no tensors.

    lanes: int64 [B, LANE_FIELDS]. rows: int64 [L, B, ROW_FIELDS]. A lane without a cache does not
    live: the kernels pass it by.
    """

    def __init__(self, layers: int, lanes: int, half: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.half = half
        self.lanes = torch.zeros(lanes, LANE_FIELDS, dtype=torch.int64, device=device)
        self.rows = torch.zeros(layers, lanes, ROW_FIELDS, dtype=torch.int64, device=device)

    def seat(
        self, lane: int, cache: ManagedCache, ring: Tensor | None, *, alive: bool, room: int
    ) -> None:
        """Write down a cache whose buffers have room for the `room` tokens that may be decoded.

        Args:
            ring: [L, H, w, d], the latest queries, the one of token t in place t % w.
        """
        layers = self.rows.shape[0]
        book, positions = cache.scores, cache.mirror.positions
        cos, sin = cache.rotary.table(cache.ledger.tokens_seen + room, cache.device)
        self.lanes[lane] = torch.tensor(
            [
                cache.size,
                cache.ledger.next_position,
                int(alive),
                cache.layers[0].capacity,
                positions.stride(1) if positions.shape[1] > 1 else 0,
                0 if book is None else book.capacity,
                0 if ring is None else ring.shape[2],
                0 if ring is None else cache.ledger.tokens_seen % ring.shape[2],
                cos.data_ptr(),
                sin.data_ptr(),
            ]
        )
        latest, sums = [0] * layers, [0] * layers
        if book is not None:
            latest, sums = book.addresses()
        self.rows[:, lane] = torch.tensor(
            [
                [
                    layer.key_buffer.data_ptr(),
                    layer.value_buffer.data_ptr(),
                    latest[index],
                    sums[index],
                    0 if ring is None else ring[index].data_ptr(),
                    positions[index if positions.shape[0] > 1 else 0].data_ptr(),
                ]
                for index, layer in enumerate(cache.layers)
            ]
        )

    def clear(self, lane: int) -> None:
        """Let nobody live there."""
        self.lanes[lane, 2] = 0

    def advance(self) -> None:
        """After a step: every living lane has a slot more. Part of what is captured."""
        alive = self.lanes[:, 2]
        self.lanes[:, :2] += alive[:, None]
        self.lanes[:, 7] = (self.lanes[:, 7] + alive) % self.lanes[:, 6].clamp_min(1)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """[B, 1, H, d] of un-rotated [B, H, 1, d] queries; `module.step_rows` is the layer's."""
        from kvfidelity.cache.gpu.decode import decode

        out: Tensor = decode(query, key, value, self.lanes, module.step_rows, self.half, scaling)
        return out

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Nothing yet: the kernel appends while it attends."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
