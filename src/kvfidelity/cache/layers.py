"""Keys and values of one layer in preallocated buffers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvfidelity.cache.capacity import GRANULE, grown_capacity
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.triton import kernels_run_on


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """One layer's slots: un-rotated keys, values, and on a CPU a workspace of rotated keys.

    Buffers are [1, G, capacity, d] and grow by half, so that n appends copy O(n) slots in all. The
    workspace holds each key rotated once, from the un-rotated key. So positions can change any
    number of times without drift. On a GPU, kernels rotate keys as they read them, and there is no
    workspace. `nbytes` counts live keys and values only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots = 0
        self._buffers: tuple[str, ...] = ("_keys", "_values")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.device, self.dtype = key_states.device, key_states.dtype
        self._keys = _empty(key_states, 0)
        self._values = _empty(value_states, 0)
        if not kernels_run_on(key_states.device):
            self._buffers = ("_keys", "_values", "_rotated")
            self._rotated = _empty(key_states, 0)
        self.is_initialized = True

    @property
    def has_workspace(self) -> bool:
        """Whether rotated keys are kept."""
        return "_rotated" in self._buffers

    @property
    def capacity(self) -> int:
        """Number of slots that the buffers have room for."""
        return self._keys.shape[2] if self.is_initialized else 0

    @property
    def key_buffer(self) -> Tensor:
        """Un-rotated keys with free slots at the end [1, G, capacity, d]."""
        return self._keys

    @property
    def value_buffer(self) -> Tensor:
        """Values with free slots at the end [1, G, capacity, d]."""
        return self._values

    @property
    def live_keys(self) -> Tensor:
        """Un-rotated keys [G, n, d]."""
        return self._keys[0, :, : self.slots]

    @property
    def live_values(self) -> Tensor:
        """Values [G, n, d]."""
        return self._values[0, :, : self.slots]

    @property
    def rotated_keys(self) -> Tensor:
        """The workspace: keys rotated by their slots' positions [G, n, d]."""
        return self._rotated[0, :, : self.slots]

    @property
    def nbytes(self) -> int:
        """Bytes of the live keys and values."""
        if not self.is_initialized:
            return 0
        keys, values = self.live_keys, self.live_values
        return keys.numel() * keys.element_size() + values.numel() * values.element_size()

    def append(self, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor] | None) -> None:
        """Add new slots.

        Args:
            key, value: [1, G, q, d], keys un-rotated.
            angles: cos and sin of the new slots' positions, fp32 [q, r], for the workspace.
        """
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        start, stop = self.slots, self.slots + key.shape[2]
        self.reserve(stop)
        self._keys[:, :, start:stop] = key
        self._values[:, :, start:stop] = value
        if angles is not None:
            rotate(key, *angles, out=self._rotated[:, :, start:stop])
        self.slots = stop

    def keep(self, kept: Tensor) -> None:
        """Keep only the slots in `kept`, [k] or [G, k], in place; rotated keys move with them."""
        size = kept.shape[-1]
        for name in self._buffers:
            buffer: Tensor = getattr(self, name)
            live = buffer[0, :, : self.slots]
            if kept.dim() == 1:
                survivors = live.index_select(1, kept)
            else:
                survivors = live.gather(1, kept[..., None].expand(-1, -1, live.shape[-1]))
            buffer[0, :, :size] = survivors
        self.slots = size

    def select(self, group: int, kept: Tensor) -> SlotLayer:
        """A copy of one kv head's slots `kept`, int64 [k]: a layer of one head; on a CPU."""
        head = SlotLayer()
        one = slice(group, group + 1)
        head.lazy_initialization(self._keys[:, one], self._values[:, one])
        head.reserve(kept.numel() + GRANULE)
        for name in self._buffers:
            live = getattr(self, name)[:, one, : self.slots]
            getattr(head, name)[:, :, : kept.numel()] = live.index_select(2, kept)
        head.slots = kept.numel()
        return head

    def rerotate(self, cos: Tensor, sin: Tensor) -> None:
        """Rotate every un-rotated key into the workspace; cos, sin broadcast to [G, n, r]."""
        rotate(self.live_keys, cos, sin, out=self.rotated_keys)

    def fork(self, slots: int) -> SlotLayer:
        """An independent copy of the first `slots` slots."""
        copy = SlotLayer()
        copy.lazy_initialization(self._keys, self._values)
        copy.reserve(slots + GRANULE)
        for name in self._buffers:
            getattr(copy, name)[:, :, :slots] = getattr(self, name)[:, :, :slots]
        copy.slots = slots
        return copy

    def sharing(self, slots: int) -> SlotLayer:
        """A layer of the first `slots` slots in the same buffers: what it appends is there too."""
        layer = SlotLayer()
        layer.device, layer.dtype, layer.is_initialized = self.device, self.dtype, True
        layer._buffers = self._buffers
        for name in self._buffers:
            setattr(layer, name, getattr(self, name))
        layer.slots = slots
        return layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise RuntimeError("slots are appended through ManagedCache.update, which knows positions")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots + query_length, 0

    def get_seq_length(self) -> int:
        return self.slots

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name before transformers 5.2x

    def reserve(self, slots: int) -> None:
        """Make room for `slots` slots."""
        capacity = self.capacity
        if slots <= capacity:
            return
        wanted = grown_capacity(slots, capacity)
        for name in self._buffers:
            old: Tensor = getattr(self, name)
            grown = _empty(old, wanted)
            grown[:, :, : self.slots] = old[:, :, : self.slots]
            setattr(self, name, grown)


def _empty(like: Tensor, capacity: int) -> Tensor:
    batch, groups, _, size = like.shape
    return torch.empty(batch, groups, capacity, size, dtype=like.dtype, device=like.device)
