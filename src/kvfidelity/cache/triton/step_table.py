"""What a captured decode step must know about the caches it serves, as device data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triton.layout import LAYER_FIELDS, SEQUENCE_FIELDS


class StepTable(AttentionCache):
    """Stands where a decode step's forward expects its cache; holds addresses, no tensors.

    lanes: int64 [B, SEQUENCE_FIELDS]. rows: int64 [L, B, LAYER_FIELDS]. A lane without a cache does
    not
    live: the kernels pass it by.
    """

    def __init__(self, layers: int, batch_size: int, half: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.half = half
        self.sequences = torch.zeros(batch_size, SEQUENCE_FIELDS, dtype=torch.int64, device=device)
        self.layer_rows = torch.zeros(
            layers, batch_size, LAYER_FIELDS, dtype=torch.int64, device=device
        )

    def admit(
        self,
        index: int,
        cache: ManagedCache,
        ring: Tensor | None,
        *,
        alive: bool,
        max_new_tokens: int,
    ) -> None:
        """Write down a cache whose buffers have room for the `room` tokens that may be decoded.

        Args:
            ring: [L, H, w, d], the latest queries, the one of token t in place t % w.
        """
        layers = self.layer_rows.shape[0]
        scores, positions = cache.scores, cache.device_positions.positions
        cos, sin = cache.rotary.table(cache.slot_table.tokens_seen + max_new_tokens, cache.device)
        self.sequences[index] = torch.tensor(
            [
                cache.size,
                cache.slot_table.next_position,
                int(alive),
                cache.layers[0].capacity,
                positions.stride(1) if positions.shape[1] > 1 else 0,
                0 if scores is None else scores.capacity,
                0 if ring is None else ring.shape[2],
                0 if ring is None else cache.slot_table.tokens_seen % ring.shape[2],
                cos.data_ptr(),
                sin.data_ptr(),
            ]
        )
        latest, accumulated = [0] * layers, [0] * layers
        if scores is not None:
            latest, accumulated = scores.addresses()
        self.layer_rows[:, index] = torch.tensor(
            [
                [
                    layer.key_buffer.data_ptr(),
                    layer.value_buffer.data_ptr(),
                    latest[layer_index],
                    accumulated[layer_index],
                    0 if ring is None else ring[layer_index].data_ptr(),
                    positions[layer_index if positions.shape[0] > 1 else 0].data_ptr(),
                ]
                for layer_index, layer in enumerate(cache.layers)
            ]
        )

    def deactivate(self, index: int) -> None:
        """Let nobody live there."""
        self.sequences[index, 2] = 0

    def advance(self) -> None:
        """After a step: every living lane has a slot more. Part of what is captured."""
        alive = self.sequences[:, 2]
        self.sequences[:, :2] += alive[:, None]
        self.sequences[:, 7] = (self.sequences[:, 7] + alive) % self.sequences[:, 6].clamp_min(1)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """[B, 1, H, d] of un-rotated [B, H, 1, d] queries; `module.step_rows` is the layer's."""
        from kvfidelity.cache.triton.decode import decode

        out: Tensor = decode(
            query, key, value, self.sequences, module.step_rows, self.half, scaling
        )
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
