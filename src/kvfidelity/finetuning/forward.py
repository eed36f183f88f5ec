"""One forward of a whole dialogue in an evicted state, through which gradients flow.

An attached model hands over un-rotated queries and keys. Each stretch's queries are rotated by
their positions and the keys that they see by the positions that these have for them. So a kept key
is rotated once for each stretch under `rerotated`, where its position differs from stretch to
stretch, and no mask over all pairs of tokens is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.rotary import IdentityRotary, rotate
from kvfidelity.finetuning.evicted_states import Stretch


class EvictedForward(AttentionCache):
    """Computes the attention of one forward over a whole dialogue; holds nothing between forwards.

    Args:
        rotary: the attached model's IdentityRotary.
        stretches: of the dialogue, see `evicted_states`.
        device: of the forward.
    """

    def __init__(
        self, rotary: IdentityRotary, stretches: Sequence[Stretch], device: torch.device
    ) -> None:
        super().__init__(layers=[])
        self._stretches = [
            (
                slice(stretch.start, stretch.stop),
                stretch.earlier.to(device),
                rotary.angles(stretch.earlier_positions, device) if len(stretch.earlier) else None,
                rotary.angles(stretch.positions, device),
            )
            for stretch in stretches
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing is cached before the forward."""
        return 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys (un-rotated) and values, both [1, G, n, d], as they are."""
        return key_states, value_states

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One layer's attention output [1, n, H, d] for un-rotated queries [1, H, n, d]."""
        ratio = query.shape[1] // key.shape[1]
        parts = []
        for own, earlier, earlier_angles, angles in self._stretches:
            new = rotate(query[:, :, own], *angles)
            keys = rotate(key[:, :, own], *angles)
            values = value[:, :, own]
            if earlier_angles is not None:
                old = rotate(key[:, :, earlier], *earlier_angles)
                keys = torch.cat([old, keys], dim=2)
                values = torch.cat([value[:, :, earlier], values], dim=2)
            if ratio > 1:
                keys, values = (x.repeat_interleave(ratio, dim=1) for x in (keys, values))
            count, slots = new.shape[2], keys.shape[2]
            bias = causal_lower_right(count, slots) if count != slots else None
            parts.append(
                scaled_dot_product_attention(
                    new, keys, values, attn_mask=bias, is_causal=bias is None, scale=scaling
                )
            )
        return torch.cat(parts, dim=2).transpose(1, 2)


def hidden_states(model: Any, ids: Tensor, stretches: Sequence[Stretch]) -> Tensor:
    """The decoder's hidden states [n, hidden] of a dialogue's tokens in an evicted state.

    Args:
        model: an attached causal language model.
        ids: int64 [n], on the model's device.
    """
    decoder = model.get_decoder()
    cache = EvictedForward(decoder.rotary_emb, stretches, ids.device)
    given = {cache_argument(decoder): cache}
    out: Tensor = decoder(input_ids=ids[None], use_cache=True, **given).last_hidden_state[0]
    return out
