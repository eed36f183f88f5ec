"""Keys and values of one layer whose kv heads hold different numbers of slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from kvfidelity.cache import attention
from kvfidelity.cache.layers import SlotLayer
from kvfidelity.cache.rotary import rotate


class RaggedLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """One layer's slots in buffers of their own for each kv head, in plain torch.

    `heads[g]` is a `SlotLayer` of one kv head. So a head's memory is that of its own slots.
    """

    def __init__(self, heads: Sequence[SlotLayer]) -> None:
        super().__init__()
        self.heads = list(heads)
        self.device, self.dtype = heads[0].device, heads[0].dtype
        self.is_initialized = True

    @classmethod
    def of(cls, layer: SlotLayer, rows: Sequence[Tensor]) -> RaggedLayer:
        """The slots `rows[g]`, int64 [k], of each kv head of a layer."""
        return cls([layer.select(group, row) for group, row in enumerate(rows)])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("a ragged layer is made of a layer that has slots")

    @property
    def live_keys(self) -> Tensor:
        """Un-rotated keys [total, d], one kv head's after another's."""
        return torch.cat([head.live_keys[0] for head in self.heads])

    @property
    def live_values(self) -> Tensor:
        """Values [total, d]."""
        return torch.cat([head.live_values[0] for head in self.heads])

    @property
    def nbytes(self) -> int:
        """Bytes of the live keys and values."""
        return sum(head.nbytes for head in self.heads)

    def append(self, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor]) -> None:
        """Add new slots.

        Args:
            key, value: [1, G, q, d], keys un-rotated.
            angles: cos and sin of the new slots' positions, fp32 [G, q, r].
        """
        for group, head in enumerate(self.heads):
            own = slice(group, group + 1)
            head.append(key[:, own], value[:, own], (angles[0][group], angles[1][group]))

    def attend(self, query: Tensor, angles: tuple[Tensor, Tensor], scaling: float) -> Tensor:
        """Causal attention [H, q, d] of each kv head's query heads over that head's slots.

        Args:
            query: [H, q, d], un-rotated.
            angles: of the queries' positions, fp32 [G, q, r].
        """
        parts = [
            attention.attend(own, head.rotated_keys, head.live_values, scaling)
            for head, own in self._rotated(query, angles)
        ]
        return torch.cat(parts)

    def attend_with_scores(
        self, query: Tensor, angles: tuple[Tensor, Tensor], scaling: float, width: int
    ) -> tuple[Tensor, Tensor]:
        """The same, and the column sums, fp32 [H, width], aligned at the right, with 0 before a
        head's slots."""
        outputs, sums = [], []
        for head, own in self._rotated(query, angles):
            out, columns = attention.attend_with_scores(
                own, head.rotated_keys, head.live_values, scaling
            )
            outputs.append(out)
            sums.append(pad(columns, (width - head.slots, 0)))
        return torch.cat(outputs), torch.cat(sums)

    def last_scores(
        self, query: Tensor, angles: tuple[Tensor, Tensor], scaling: float, width: int
    ) -> Tensor:
        """The attention of the last query alone, fp32 [H, width], aligned at the right."""
        parts = []
        for head, own in self._rotated(query, angles):
            columns = attention.window_scores(own[:, -1:], head.rotated_keys, scaling)[:, 0]
            parts.append(pad(columns, (width - head.slots, 0)))
        return torch.cat(parts)

    def _rotated(
        self, query: Tensor, angles: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[SlotLayer, Tensor]]:
        """Each kv head with its query heads, rotated [H / G, q, d]."""
        parts = torch.chunk(query, len(self.heads))
        for head, own, cos, sin in zip(self.heads, parts, *angles, strict=True):
            yield head, rotate(own, cos, sin)

    def keep(self, rows: Sequence[Tensor]) -> None:
        """Keep only the slots `rows[g]`, int64 [k], of each kv head."""
        self.heads = [head.select(0, row) for head, row in zip(self.heads, rows, strict=True)]

    def set_counts(self, counts: Sequence[int]) -> None:
        """Set the slots of each head: more were filled, or the last ones are forgotten."""
        for head, count in zip(self.heads, counts, strict=True):
            head.slots = count

    def sharing(self, counts: Sequence[int]) -> RaggedLayer:
        """A layer of `counts` slots in the same buffers: what it appends is there too."""
        return RaggedLayer(
            [head.sharing(count) for head, count in zip(self.heads, counts, strict=True)]
        )

    def fork(self, slots: int | None = None) -> RaggedLayer:
        """An independent copy; of all slots, because some were evicted."""
        return RaggedLayer([head.fork(head.slots) for head in self.heads])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise RuntimeError("slots are appended through ManagedCache.update, which knows positions")

    def get_seq_length(self) -> int:
        return max(head.slots for head in self.heads)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.2x
