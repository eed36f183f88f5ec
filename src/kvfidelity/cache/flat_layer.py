"""Keys and values of one layer on a GPU whose kv heads hold different numbers of slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

#: Heads start at multiples of this many slots, so that kernels load aligned rows of any dtype.
ALIGNMENT = 16


@dataclass(frozen=True)
class HeadSlots:
    """The live slots of one kv head: un-rotated keys and values, views [1, n, d]."""

    live_keys: Tensor
    live_values: Tensor

    @property
    def slots(self) -> int:
        """n."""
        return self.live_keys.shape[1]


class FlatLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """One layer's slots in one buffer of keys and one of values: a kv head after another.

    Kernels find a head by where it starts, and write its new slots after its last one. All heads
    grow by the same number of slots, so that all have at least the same room.

    Args:
        counts: slots of each kv head.
        room: how many more each head has room for, at least.
        key, value: [..., d], of the dtype and on the device of the buffers.
    """

    def __init__(self, counts: Sequence[int], room: int, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.counts = list(counts)
        self.room = room
        self.device, self.dtype = key.device, key.dtype
        sizes = [count + room + -(count + room) % ALIGNMENT for count in counts]
        *self.starts, total = accumulate(sizes, initial=0)
        self.key_buffer = key.new_empty(total, key.shape[-1])
        self.value_buffer = value.new_empty(total, value.shape[-1])
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("a flat layer is made of a layer that has slots")

    @property
    def heads(self) -> list[HeadSlots]:
        """Each kv head's slots alone."""
        return [
            HeadSlots(*(part[None, start : start + count] for part in self._buffers))
            for start, count in zip(self.starts, self.counts, strict=True)
        ]

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
        return sum(self.counts) * sum(b.shape[-1] * b.element_size() for b in self._buffers)

    def set_counts(self, counts: Sequence[int]) -> None:
        """Set the slots of each head: kernels filled more, or the last ones are forgotten."""
        self.room -= counts[0] - self.counts[0]
        self.counts = list(counts)

    def sharing(self, counts: Sequence[int]) -> FlatLayer:
        """A layer of `counts` slots in the same buffers: what it appends is there too."""
        layer = FlatLayer.__new__(FlatLayer)
        layer.__dict__.update(self.__dict__)
        layer.set_counts(counts)
        return layer

    @property
    def _buffers(self) -> tuple[Tensor, Tensor]:
        return self.key_buffer, self.value_buffer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise RuntimeError("slots are appended through ManagedCache.update, which knows positions")

    def get_seq_length(self) -> int:
        return max(self.counts)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.2x
