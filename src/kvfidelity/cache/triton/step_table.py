"""The caches that a captured decode step serves, as numbers on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.ragged import upload
from kvfidelity.cache.triton.addresses import layer_rows, positions_stride, ring_size_of
from kvfidelity.cache.triton.layout import GROWING, LayerField, SequenceField, row


class StepTable(AttentionCache):
    """The cache argument of a captured decode step: addresses and numbers, no keys or values.

    sequences: int64 [B, fields], a row of SequenceField for each sequence of the batch.
    layer_rows: int64 [L, B, fields], a row of LayerField for each layer and sequence.
    The kernels skip a row that is not alive.
    """

    def __init__(self, layers: int, batch_size: int, half: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.half = half
        self.sequences = torch.zeros(
            batch_size, len(SequenceField), dtype=torch.int64, device=device
        )
        self.layer_rows = torch.zeros(
            layers, batch_size, len(LayerField), dtype=torch.int64, device=device
        )

        #: The rows that `layer_rows` holds, by sequence.
        self._written: dict[int, np.ndarray] = {}

    def admit(
        self,
        index: int,
        cache: ManagedCache,
        *,
        alive: bool,
        max_new_tokens: int,
    ) -> None:
        """Fill the row of a sequence whose buffers have room for `max_new_tokens` more slots.

        Args:
            index: which row, 0..B-1.
            alive: whether it decodes.
        """
        scores = cache.scores
        ring_size = ring_size_of(cache)
        seen = cache.slot_table.tokens_seen
        bound = cache.slot_table.position_bound + max_new_tokens
        cos, sin = cache.rotary.table(bound, cache.device)
        numbers = torch.tensor(
            row(
                SequenceField,
                {
                    SequenceField.SLOTS: cache.size,
                    SequenceField.NEXT_POSITION: cache.slot_table.next_position,
                    SequenceField.ALIVE: int(alive),
                    SequenceField.CAPACITY: cache.layers[0].capacity,
                    SequenceField.POSITIONS_STRIDE: positions_stride(cache),
                    SequenceField.SCORES_CAPACITY: 0 if scores is None else scores.capacity,
                    SequenceField.RING_SIZE: ring_size,
                    SequenceField.RING_INDEX: seen % ring_size if ring_size else 0,
                    SequenceField.COS: cos.data_ptr(),
                    SequenceField.SIN: sin.data_ptr(),
                },
            )
        )
        # Without waiting for what the device still computes.
        self.sequences[index].copy_(numbers, non_blocking=True)
        self._write_layer_rows(index, self.layer_rows[:, index], layer_rows(cache))

    def _write_layer_rows(self, index: int, where: Tensor, rows: np.ndarray) -> None:
        """Write a sequence's rows of LayerField, unless they are there: after an eviction the
        buffers are mostly where they were."""
        known = self._written.get(index)
        if known is None or not np.array_equal(known, rows):
            self._written.pop(index, None)
            where.copy_(upload(torch.from_numpy(rows), where.device))
            self._written[index] = rows

    def deactivate(self, index: int) -> None:
        """Mark the row of a sequence as unused: the kernels skip it."""
        self.alive[index] = 0

    def advance(self) -> None:
        """Count the slot that a step added to each living sequence. The graph captures this too."""
        alive = self.sequences[..., SequenceField.ALIVE]
        self.sequences[..., GROWING] += alive[..., None]
        index = self.sequences[..., SequenceField.RING_INDEX]
        size = self.sequences[..., SequenceField.RING_SIZE]
        index.copy_((index + alive) % size.clamp_min(1))

    def end(self, going_on: Tensor) -> None:
        """Keep only sequences alive that `going_on`, bool [B], marks. The graph captures this."""
        self.alive.mul_(going_on)

    def give_rows(self, attentions: Sequence[Any]) -> None:
        """Give each layer's attention module its rows, where `attend` finds them.

        As attributes of the modules, so that one compilation serves all layers.
        """
        for module, rows in zip(attentions, self.layer_rows, strict=True):
            module.step_rows = rows

    @property
    def alive(self) -> Tensor:
        """int64 [B], a view: 1 for each sequence that decodes, else 0."""
        return self.sequences[:, SequenceField.ALIVE]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """[B, 1, H, d] of un-rotated [B, H, 1, d] queries; see `give_rows`."""
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
