"""An extra forward: a cache's text is fed again, and its slots get the attention of that text.

The pass is that of KVzip (arXiv 2505.23416). It leaves the cache as it was. It costs about as much
as feeding the cached text once more, and its seconds count as those of the ranking.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.recent_queries import RecentQueries
from kvfidelity.cache.scores import NotCollectedError
from kvfidelity.cache.view import CacheView, view_of

#: Tokens of the part before that begin the repetition of a later part, as in KVzip.
LEAD = 8
#: Weights in memory at once, fp32.
TILE_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Repetition:
    """The extra forward of one cache at one moment; computed once, however often it is asked for.

    head: the layer and kv head that a view of one kv head is about; None: all.
    """

    cache: ManagedCache
    head: tuple[int, int] | None = None
    _known: dict[tuple[int, int], list[list[Tensor]]] = field(default_factory=dict, repr=False)

    def of_head(self, layer: int, head: int) -> Repetition:
        """The same of one kv head alone."""
        return replace(self, head=(layer, head))

    def attention(self, sinks: int, chunk: int) -> Tensor:
        """The largest weight that a slot gets while the text is repeated, fp32 [L, G, n].

        The cached tokens are repeated in parts of `chunk`: those that any kv head still holds, in
        order, after the transcript's `request` and the last tokens of the part before. A query's
        weights are its softmax over the first `sinks` slots, the slots of the part and the fed
        tokens up to itself. A slot of a part gets the most over all fed queries and query heads of
        its kv head.

        Raises:
            NotCollectedError: the cache does not know its text.
        """
        if (sinks, chunk) not in self._known:
            with _mode_of(self.cache), torch.no_grad():
                self._known[sinks, chunk] = _attention(self.cache, sinks, chunk)
        rows = self._known[sinks, chunk]
        if self.head is not None:
            layer, head = self.head
            return rows[layer][head][None, None]
        return torch.stack([torch.stack(layer) for layer in rows])


def _mode_of(cache: ManagedCache) -> torch.inference_mode:
    """Inference mode if the caller is in it or the cache's buffers were made in it: those that grow
    can then be written to in the same mode as these."""
    # Not the live keys of a ragged layer, which are put together when they are asked for.
    first = getattr(cache.layers[0], "heads", [cache.layers[0]])[0]
    buffers = (first.live_keys, cache.slot_table.token_index)
    made = any(buffer.is_inference() for buffer in buffers)
    return torch.inference_mode(mode=made or torch.is_inference_mode_enabled())


def _attention(cache: ManagedCache, sinks: int, chunk: int) -> list[list[Tensor]]:
    known = cache.transcript
    if known is None or len(known.ids) < cache.slot_table.tokens_seen:
        raise NotCollectedError(
            "the cache does not know the text that it was fed: make it with "
            "new_cache(model, evictor=evictor) and feed it through the model"
        )
    held = torch.unique(cache.slot_table.token_index)
    parts = torch.split(held[held >= 0].cpu(), chunk)
    rows: list[list[Tensor]] = []
    for index, part in enumerate(parts):
        lead = parts[index - 1][-LEAD:].tolist() if index else []
        again = [known.ids[token] for token in [*lead, *part.tolist()]]
        fed = [*known.request, *again]
        found = _of_part(cache, fed, part, sinks)
        # Each slot belongs to one part and is 0 in the others.
        rows = (
            found
            if not rows
            else [
                [one + other for one, other in zip(*pair, strict=True)]
                for pair in zip(rows, found, strict=True)
            ]
        )
    return rows


def _of_part(cache: ManagedCache, fed: list[int], part: Tensor, sinks: int) -> list[list[Tensor]]:
    before_forward, transcript = cache.before_forward, cache.transcript
    cache.before_forward = cache.transcript = None
    try:
        with cache.rollback_after():
            cache.recent_queries = RecentQueries(len(cache.layers), len(fed))
            decoder: Any = cache.rotary.decoder
            ids = torch.tensor([fed], device=cache.device)
            decoder(input_ids=ids, use_cache=True, **{cache_argument(decoder): cache})
            first, last = int(part[0]), int(part[-1])
            return [
                [part_weights(head, len(fed), first, last, sinks) for head in layer]
                for layer in view_of(cache, 1, 0, scores=False).by_head()
            ]
    finally:
        cache.before_forward, cache.transcript = before_forward, transcript


def part_weights(view: CacheView, fed: int, first: int, last: int, sinks: int) -> Tensor:
    """One kv head's weights, fp32 [n], in one part of its text; 0 for the slots of other parts.

    Args:
        view: of that kv head alone; its latest `fed` slots are the repetition.
        first, last: token indices of the part.
        sinks: see `Repetition.attention`.
    """
    token = view.token_index[0, 0, : view.slots - fed]
    member = (token >= first) & (token <= last)
    sink = ~member & (torch.arange(token.numel(), device=token.device) < sinks) & (token < first)
    keys = view.layers[0].rotated_keys[0]
    member, sink = member.to(keys.device), sink.to(keys.device)
    own, repeated = keys[: view.slots - fed], keys[view.slots - fed :]
    weights = largest_weights(
        view.rotated_queries(0), torch.cat([own[sink], own[member], repeated]), view.scaling
    )
    found = torch.zeros(token.numel(), device=keys.device)
    count = int(sink.sum())
    found[member] = weights[count : count + int(member.sum())]
    return found


def largest_weights(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """The most attention that each key gets from a query, fp32 [m].

    Args:
        queries: [r, q, d], rotated, of the query heads of one kv head; query i sees all keys but
            the last q - 1 - i.
        keys: [m, d], rotated; the last q are the queries' own.
    """
    _, count, _ = queries.shape
    own = torch.arange(keys.shape[0], device=keys.device) - (keys.shape[0] - count)
    most = torch.zeros(keys.shape[0], device=keys.device)
    rows = max(1, TILE_ELEMENTS // (queries.shape[0] * keys.shape[0]))
    for start in range(0, count, rows):
        part = queries[:, start : start + rows]
        logits = (part @ keys.T).float() * scaling
        numbers = torch.arange(start, start + part.shape[1], device=keys.device)
        logits.masked_fill_(own > numbers[:, None], -torch.inf)
        most = torch.maximum(most, logits.softmax(-1).amax((0, 1)))
    return most
