"""Alternative continuations of a cache in one forward, which leaves the cache as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.rotary import rotate

#: Parent of a token that continues the cache itself.
ROOT = -1


@dataclass
class TokenTree:
    """Tokens that continue a cache in several ways; a branch shares its ancestors' computation.

    ids: token ids. parents: for each token the index of the token before it, or ROOT.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def extend(self, ids: Sequence[int], parent: int = ROOT) -> list[int]:
        """Add a branch after `parent`; returns its tokens' indices."""
        added = []
        for token in ids:
            self.ids.append(token)
            self.parents.append(parent)
            parent = len(self.ids) - 1
            added.append(parent)
        return added

    def depths(self) -> Tensor:
        """Number of each token's ancestors, int64 [m]."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + 1)
        return torch.tensor(depths)

    def sees(self) -> Tensor:
        """bool [m, m]: row j marks the tokens that token j sees, its ancestors and itself."""
        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for index, parent in enumerate(self.parents):
            if parent != ROOT:
                seen[index] |= seen[parent]
        return seen


class TreeCache(AttentionCache):
    """A token tree on a managed cache, for one forward: each token sees all slots and its branch.

    A token's position is the cache's next position plus its depth, as if its branch alone were fed.
    Nothing is appended, and no scores or recent queries are collected.
    """

    def __init__(self, cache: ManagedCache, tree: TokenTree) -> None:
        super().__init__(layers=[])
        self._cache = cache
        positions = cache.slot_table.next_position + tree.depths()
        self._angles = cache.rotary.angles(positions, cache.device)
        slots = torch.ones(len(tree.ids), cache.size, dtype=torch.bool)
        self._mask = torch.cat([slots, tree.sees()], dim=1).to(cache.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns all rotated keys and all values of the layer [1, G, n + m, d]; keeps nothing."""
        layer = self._cache.layers[layer_idx]
        keys = torch.cat(
            [self._cache.rotated_keys(layer_idx)[None], rotate(key_states, *self._angles)], dim=2
        )
        return keys, torch.cat([layer.live_values[None], value_states], dim=2)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One attention module's output [1, m, H, d]."""
        out = scaled_dot_product_attention(
            rotate(query, *self._angles),
            key,
            value,
            attn_mask=self._mask,
            scale=scaling,
            enable_gqa=True,
        )
        return out.transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
