"""What is measured of a model once, on a text, for policies that need to know its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.view import CacheView, view_of


@dataclass(frozen=True)
class Calibration:
    """A model's heads, as one text shows them.

    filters: fp32 [L, G, d], the main direction of the rotated queries: the mean over a kv head's
        query heads of `query_filters`.
    retrieval: fp32 [L, G], how much a repeated token looks at its first copy and at what followed
        it there: the mean over tokens of these two weights, the most over a kv head's query heads.
    provenance: where it comes from, by name.
    """

    filters: Tensor
    retrieval: Tensor
    provenance: Mapping[str, str] = field(default_factory=dict)

    def of_head(self, layer: int, head: int) -> Calibration:
        """The same of one kv head alone, [1, 1, ...]."""
        own = (slice(layer, layer + 1), slice(head, head + 1))
        return Calibration(self.filters[own], self.retrieval[own], self.provenance)


@torch.no_grad()
def calibrate(
    model: Any, ids: Sequence[int], provenance: Mapping[str, str] | None = None
) -> Calibration:
    """Measure `model` on a text, and keep the result where its caches find it.

    The text is fed twice in a row into an empty cache: two forwards.

    Args:
        model: a causal language model; it is attached to managed caches if it is not yet.
        ids: token ids of the text, at least two.

    Raises:
        UserError: the model's architecture is not supported.
        ValueError: fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"a calibration takes at least two tokens, and got {len(ids)}")
    decoder = attach(model).get_decoder()
    cache = new_cache(model, PositionMode.ORIGINAL, query_window=len(ids))
    _feed(decoder, cache, ids)
    view = view_of(cache, 1, 0)
    layers, groups = view.grid
    found = []
    for layer in range(layers):
        queries = query_filters(view.rotated_queries(layer).float())
        found.append(queries.view(groups, -1, queries.shape[-1]).mean(1))
    _feed(decoder, cache, ids)
    retrieval = [[_retrieval(head) for head in layer] for layer in view_of(cache, 1, 0).by_head()]
    calibration = Calibration(
        torch.stack(found).cpu(), torch.tensor(retrieval), dict(provenance or {})
    )
    decoder.rotary_emb.calibration = calibration
    return calibration


def query_filters(queries: Tensor) -> Tensor:
    """Unit vectors [H, d]: the main direction of `queries` [H, w, d], on the mean query's side."""
    if not bool(queries.isfinite().all()):
        return queries.new_full((queries.shape[0], queries.shape[2]), torch.nan)
    direction: Tensor = torch.linalg.svd(queries, full_matrices=False).Vh[:, 0]
    side = torch.einsum("hd,hd->h", direction, queries.mean(1))
    return torch.where(side < 0, -1.0, 1.0)[:, None] * direction


def _retrieval(view: CacheView) -> float:
    """One kv head's, of a view whose second half of slots repeats the first."""
    weights = view.window_attention(0)
    count = weights.shape[1]
    token = torch.arange(count, device=weights.device)
    looked = weights[:, token, token] + weights[:, token, token + 1]
    return float(looked.mean(1).max())


def _feed(decoder: Any, cache: ManagedCache, ids: Sequence[int]) -> None:
    device = next(decoder.parameters()).device
    tokens = torch.tensor([list(ids)], device=device)
    decoder(input_ids=tokens, use_cache=True, **{cache_argument(decoder): cache})
