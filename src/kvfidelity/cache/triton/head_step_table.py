"""The step table of caches whose kv heads may hold different numbers of slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.ragged import upload
from kvfidelity.cache.triton.addresses import head_rows, ring_size_of
from kvfidelity.cache.triton.layout import SequenceField
from kvfidelity.cache.triton.step_table import StepTable

#: The longest of a layer's heads may hold several times as many slots as they do on average.
SHARES = 4


class HeadStepTable(StepTable):
    """A step table in which each kv head of a sequence is a separate sequence, with one kv head.

    sequences: int64 [L, B * G, fields], layer_rows: the same shape: a row of SequenceField and one
    of LayerField for each layer, sequence and kv head.
    """

    def __init__(
        self, layers: int, batch_size: int, groups: int, half: int, device: torch.device
    ) -> None:
        super().__init__(layers, batch_size * groups, half, device)
        self._shape = (layers, batch_size, groups, -1)
        self.sequences = self.sequences.repeat(layers, 1, 1)

    def admit(self, index: int, cache: ManagedCache, *, alive: bool, max_new_tokens: int) -> None:
        layers, _, groups, _ = self._shape
        table, scores, ring_size = cache.slot_table, cache.scores, ring_size_of(cache)
        seen = table.tokens_seen
        bound = cache.slot_table.position_bound + max_new_tokens
        cos, sin = cache.rotary.table(bound, cache.device)
        rows = np.zeros((layers, groups, len(SequenceField)), dtype=np.int64)
        rows[..., SequenceField.SLOTS] = table.counts.expand(layers, groups).numpy()
        following = table.next_positions.expand(layers, groups).numpy()
        rows[..., SequenceField.NEXT_POSITION] = following
        rows[..., SequenceField.ALIVE] = alive
        rows[..., SequenceField.SCORES_CAPACITY] = 0 if scores is None else scores.capacity
        rows[..., SequenceField.RING_SIZE] = ring_size
        rows[..., SequenceField.RING_INDEX] = seen % ring_size if ring_size else 0
        rows[..., SequenceField.COS] = cos.data_ptr()
        rows[..., SequenceField.SIN] = sin.data_ptr()
        own = self._by_sequence(self.sequences)[:, index]
        own.copy_(upload(torch.from_numpy(rows), own.device))
        self._write_layer_rows(
            index, self._by_sequence(self.layer_rows)[:, index], head_rows(cache)
        )

    def deactivate(self, index: int) -> None:
        self._by_sequence(self.sequences)[:, index, :, SequenceField.ALIVE] = 0

    def end(self, going_on: Tensor) -> None:
        self._by_sequence(self.sequences)[..., SequenceField.ALIVE] *= going_on[:, None]

    def give_rows(self, attentions: Sequence[Any]) -> None:
        super().give_rows(attentions)
        for module, rows in zip(attentions, self.sequences, strict=True):
            module.step_sequences = rows

    @property
    def alive(self) -> Tensor:
        return self._by_sequence(self.sequences)[0, :, 0, SequenceField.ALIVE]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        from kvfidelity.cache.triton.decode import decode

        batch, heads, _, size = query.shape
        groups = key.shape[1]
        out: Tensor = decode(
            query.reshape(batch * groups, heads // groups, 1, size),
            key.reshape(batch * groups, 1, 1, size),
            value.reshape(batch * groups, 1, 1, size),
            module.step_sequences,
            module.step_rows,
            self.half,
            scaling,
            SHARES,
        )
        return out.view(batch, 1, heads, size)

    def _by_sequence(self, rows: Tensor) -> Tensor:
        """[L, B, G, fields], a view."""
        return rows.view(self._shape)
