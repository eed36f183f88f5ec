"""How a cache computes once its kv heads hold different numbers of slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.ragged_cpu import RaggedOnCpu
from kvfidelity.cache.ragged_gpu import RaggedOnGpu
from kvfidelity.cache.triton import kernels_run_on

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


class RaggedHeads(Protocol):
    """Replaces what `ManagedCache` does itself as long as all kv heads hold as many slots.

    It holds no reference to the cache, which would keep buffers alive that nothing uses.
    """

    def append(self, cache: ManagedCache, positions: Tensor) -> None:
        """Follow the slot table, which has appended tokens at `positions`, int64 [L, G, q]."""

    def update(self, cache: ManagedCache, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """One layer's new keys (un-rotated) and values, both [1, G, q, d]."""

    def attend(
        self, cache: ManagedCache, layer_idx: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """One layer's attention output [1, q, H, d] for un-rotated queries [1, H, q, d]."""

    def keep(self, cache: ManagedCache, kept: RaggedKeepSet) -> None:
        """Follow the slot table, which has evicted, in all layers."""

    def rotated_keys(self, cache: ManagedCache, layer_idx: int, group: int) -> Tensor:
        """One kv head's keys, rotated by their slots' positions [1, n, d]."""

    def rectangle(self, cache: ManagedCache, layer_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """One layer's rotated keys and values, both [G, n, d] for the most slots of a head, and
        which of them are slots, bool [G, n]; the others are 0."""

    def reserve(self, cache: ManagedCache, extra: int) -> None:
        """Make room for `extra` more slots in each kv head."""

    def fork(self, copy: ManagedCache) -> RaggedHeads:
        """That of an independent copy of the cache, which has the cache's own layers so far."""

    def sharing(self) -> RaggedHeads:
        """That of a cache in the same buffers."""


def ragged_heads(device: torch.device) -> RaggedHeads:
    """Those of a cache on `device`."""
    return RaggedOnGpu() if kernels_run_on(device) else RaggedOnCpu()
