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
        # Per row of the slot table: kv heads that hold different numbers of slots count their own.
        table = cache.slot_table
        next_positions = table.next_positions if table.is_ragged else table.next_position
        self._positions = torch.as_tensor(next_positions)[..., None] + tree.depths()
        self._sees = tree.sees().to(cache.device)
        if not table.is_ragged:
            self._angles = cache.rotary.angles(self._positions, cache.device)
            # Which of the slots, all of them, and of the tree's tokens a token sees [m, n + m].
            all_slots = self._sees.new_ones(len(tree.ids), cache.size)
            self._mask = torch.cat([all_slots, self._sees], dim=1)
        self._changed = cache.changed_attention

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns all rotated keys and all values of the layer [1, G, n + m, d]; keeps nothing."""
        layer = self._cache.layers[layer_idx]
        if self._cache.ragged is not None:
            return key_states, value_states
        keys = torch.cat(
            [self._cache.rotated_keys(layer_idx)[None], rotate(key_states, *self._angles)], dim=2
        )
        return keys, torch.cat([layer.live_values[None], value_states], dim=2)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One attention module's output [1, m, H, d]."""
        if self._cache.ragged is not None:
            return self._attend_ragged(module.layer_idx, query, key, value, scaling)
        mask = self._mask
        if self._changed is not None:
            scaling *= self._changed.factor
            mask = self._with_bias(self._changed.bias_of(module.layer_idx, self._cache.size), query)
        out = scaled_dot_product_attention(
            rotate(query, *self._angles),
            key,
            value,
            attn_mask=mask,
            scale=scaling,
            enable_gqa=True,
        )
        return out.transpose(1, 2)

    def _attend_ragged(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
    ) -> Tensor:
        """Each kv head's query heads over that head's slots and the tree's keys [1, G, m, d]."""
        assert self._cache.ragged is not None
        keys, values, live = self._cache.ragged.rectangle(self._cache, index)
        angles = self._cache.rotary.angles(self._positions[index], query.device)
        groups, slots, size = keys.shape
        heads, tokens = query.shape[1:3]
        by_head = query.view(groups, heads // groups, tokens, size)
        seen = torch.cat(
            [live[:, None].expand(-1, tokens, slots), self._sees.expand(groups, -1, -1)], dim=2
        )
        # To PyTorch kv heads are a batch, because each sees other slots.
        out = scaled_dot_product_attention(
            rotate(by_head, *(angle[:, None] for angle in angles)),
            torch.cat([keys, rotate(key[0], *angles)], dim=1)[:, None],
            torch.cat([values, value[0]], dim=1)[:, None],
            attn_mask=seen[:, None],
            scale=scaling,
            enable_gqa=True,
        )
        return out.reshape(1, heads, tokens, size).transpose(1, 2)

    def _with_bias(self, bias: Tensor | None, query: Tensor) -> Tensor:
        """The mask with a bias per slot [H, n] added to the logits: [m, n + m] or [H, m, n + m]."""
        if bias is None:
            return self._mask
        added = torch.zeros(bias.shape[0], 1, self._mask.shape[-1], device=bias.device)
        added[..., : bias.shape[-1]] = bias[:, None]
        return added.masked_fill(~self._mask, -torch.inf).to(query.dtype)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0
