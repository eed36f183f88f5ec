"""How much an eviction changes what attention computes, and which part of it is due to positions.

At the moment of an eviction, over the latest w queries q_u (token index u; un-rotated, as the cache
keeps them), each query head computes three attention outputs over the cached slots i with token
index t_i <= u, from one pass over keys and values:

    all      every slot, rotated by true offsets u - t_i
    kept     the survivors, rotated by true offsets
    moved    the survivors, rotated by the offsets that they have after the eviction

The offsets after the eviction differ from the true ones by the same number for every query:
error_i = (next position - p_i) - (tokens seen - t_i). With R_x the rotation by offset x, the logit
of a survivor moves by q_u' (R_{u - t_i + error_i} - R_{u - t_i}) k_i, and

    disruption by tokens     |kept - all| / |all|
    disruption by positions  |moved - kept| / |all|

with |.| the Euclidean norm over the w queries and the head's features. Both are 0 where nothing
changes, and the relative error of moved is at most their sum. Queries older than every survivor of
their head are left out. Attention on the future: the share of `moved` attention on slots whose
position is not before the next token's, the slots of `future_share`. Source: this project; the
paper (arXiv 2511.04686) names positional disruption and gives no measure.

The latest queries stand for those that follow, as in SnapKV (arXiv 2404.14469). Slots that earlier
evictions removed are in no output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvfidelity.cache.eviction_log import Disruption
from kvfidelity.cache.layer_view import LayerView
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.rotary import IdentityRotary, rotate
from kvfidelity.cache.slots import SlotTable, as_grid
from kvfidelity.cache.view import CacheView, view_of

#: Slots whose keys are rotated and compared at once.
SLOTS_AT_ONCE = 2048


@dataclass(frozen=True)
class DisruptionMeter:
    """What an evictor calls to measure `disruption` over the latest `window` queries."""

    window: int

    def __call__(self, cache: ManagedCache, kept: Tensor | RaggedKeepSet) -> Disruption | None:
        return disruption(cache, kept, self.window)


@torch.no_grad()
def disruption(cache: ManagedCache, kept: Tensor | RaggedKeepSet, window: int) -> Disruption | None:
    """Measure what evicting all but `kept` would change; the cache is left as it is.

    Works for shared keep sets, for one per layer or kv head, and for heads that hold or keep
    different numbers of slots; on the device of the cache, in fp32.

    Args:
        kept: int64 [k], [L, k] or [L, G, k], sorted slots; or ragged.
        window: how many of the latest queries to look at, at least 1.

    Returns:
        None if the cache keeps no queries, or has been fed none.
    """
    if cache.recent_queries is None or not len(cache.recent_queries):
        return None
    view, layers = view_of(cache, cache.size, 0), len(cache.layers)
    ragged = cache.slot_table.is_ragged
    rows = []
    if ragged or isinstance(kept, RaggedKeepSet):
        ragged, changes = True, _of_heads(cache, kept)
    else:
        changes = _of_layers(cache, kept)
    for layer in range(layers):
        parts = _heads_of(view, layer) if ragged else [view.layers[layer]]
        found = [
            _measure(part, next(changes), cache.rotary, cache.scaling, window) for part in parts
        ]
        rows.append(torch.cat(found, dim=1))
    tokens, positions, future = torch.stack(rows, dim=1).double().cpu()
    return Disruption(tokens, positions, future)


@dataclass(frozen=True)
class _Change:
    """What an eviction does to the slots of one layer, or of one kv head.

    token, error: int64 [G', n]; errors of evicted slots are 0. kept: bool [G', n]. moves: whether
    any error is not 0. tokens_seen: the index of the next token. angles: of token and of
    token - error, once they are computed.
    """

    token: Tensor
    error: Tensor
    kept: Tensor
    moves: bool
    tokens_seen: int
    angles: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, before: SlotTable, kept: Tensor, device: torch.device) -> list[_Change]:
        """One for each layer that differs from the others; `kept` is int64 [L', G', k]."""
        after = before.fork()
        after.keep(kept)
        error = after.next_position - after.position - (after.tokens_seen - after.token_index)
        lead = [
            max(sizes)
            for sizes in zip(
                kept.shape[:2], error.shape[:2], before.token_index.shape, strict=False
            )
        ]
        slots = kept.to(device).expand(*lead, -1)
        zeros = torch.zeros(*lead, len(before), dtype=torch.int64, device=device)
        errors = zeros.scatter(-1, slots, error.to(device).expand(*lead, -1))
        alive = zeros.bool().scatter(-1, slots, True)
        token = before.token_index.to(device).expand(*lead, -1)
        moves = bool(error.any())
        rows = zip(token, errors, alive, strict=True)
        return [cls(*row, moves, before.tokens_seen) for row in rows]


def _of_layers(cache: ManagedCache, kept: Tensor) -> Iterator[_Change]:
    """The change of each layer; the same object where layers share a keep set."""
    changes = _Change.of(cache.slot_table, as_grid(kept), cache.device)
    for layer in range(len(cache.layers)):
        yield changes[layer if len(changes) > 1 else 0]


def _of_heads(cache: ManagedCache, kept: Tensor | RaggedKeepSet) -> Iterator[_Change]:
    """The change of each kv head, layer by layer."""
    table = cache.slot_table
    ragged = table.as_ragged(kept)
    for layer, row in enumerate(ragged.rows()):
        for head, slots in enumerate(row):
            yield _Change.of(table.row(layer, head), slots[None, None].cpu(), cache.device)[0]


def _heads_of(view: CacheView, layer: int) -> list[LayerView]:
    return [head.layers[0] for head in view.by_head()[layer]]


def _measure(
    layer: LayerView, change: _Change, rotary: IdentityRotary, scaling: float, window: int
) -> Tensor:
    """[3, H]: disruption by tokens and by positions, and attention on the future, by query head."""
    assert layer.queries is not None
    (groups, slots, size), device = layer.keys.shape, layer.keys.device
    queries = layer.queries[:, -window:]
    count = queries.shape[1]
    own = torch.arange(change.tokens_seen - count, change.tokens_seen, device=device)
    query = rotate(queries.float(), *rotary.angles(own, device)) * scaling
    query = query.reshape(groups, -1, size)
    if not change.angles:
        positions = (change.token, change.token - change.error) if change.moves else (change.token,)
        change.angles.extend(rotary.angles(position, device) for position in positions)
    everything, kept = _Output.empty(query), _Output.empty(query)
    moved = _Output.empty(query) if change.moves else kept
    ratio = query.shape[1] // count
    for start in range(0, slots, SLOTS_AT_ONCE):
        part = slice(start, start + SLOTS_AT_ONCE)
        key, value = layer.keys[:, part].float(), layer.values[:, part].float()
        true, *effective = (
            query @ rotate(key, cos[..., part, :], sin[..., part, :]).transpose(1, 2)
            for cos, sin in change.angles
        )
        offset = own[:, None] - change.token[:, None, part]  # [G', w, m]
        hidden = (offset < 0).repeat(1, ratio, 1)
        gone = hidden | ~change.kept[:, None, part]
        everything.add(true.masked_fill(hidden, -torch.inf), value)
        kept.add(true.masked_fill(gone, -torch.inf), value)
        for logits in effective:
            after = change.tokens_seen - change.token[:, None, part] + change.error[:, None, part]
            ahead = after <= 0  # [G', 1, m]: the next position minus the slot's
            moved.add(logits.masked_fill(gone, -torch.inf), value, ahead)
    seen = kept.mass > 0  # whether any survivor is before the query: [G, H/G * w, 1]
    by_head = (groups * ratio, count, -1)
    whole, survivors, shifted = (
        (one.mean * seen).reshape(by_head) for one in (everything, kept, moved)
    )
    norm = _norm(whole)
    share = (moved.marked / moved.mass.clamp(min=torch.finfo(torch.float32).tiny)).reshape(by_head)
    queries_seen = seen.expand(groups, -1, 1).reshape(by_head).sum((1, 2))
    return torch.stack(
        [
            _norm(survivors - whole) / norm,
            _norm(shifted - survivors) / norm,
            share.sum((1, 2)) / queries_seen,
        ]
    )


def _norm(outputs: Tensor) -> Tensor:
    """[H, w, d] -> [H]."""
    norm: Tensor = torch.linalg.vector_norm(outputs, dim=(1, 2))
    return norm


@dataclass
class _Output:
    """Attention over slots that come in parts: the running softmax of FlashAttention
    (arXiv 2205.14135).

    highest: [G, q, 1], the largest logit so far. mass, marked: [G, q, 1], sums of weights, and of
    those of marked slots. total: [G, q, d], the weighted sum of values.
    """

    highest: Tensor
    mass: Tensor
    marked: Tensor
    total: Tensor

    @classmethod
    def empty(cls, query: Tensor) -> _Output:
        """Of queries [G, q, d]."""
        zeros = torch.zeros_like(query[..., :1])
        return cls(torch.full_like(zeros, -torch.inf), zeros, zeros, torch.zeros_like(query))

    def add(self, logits: Tensor, value: Tensor, marked: Tensor | None = None) -> None:
        """Add slots: logits [G, q, m], minus infinity where not seen, and values [G, m, d]."""
        highest = torch.maximum(self.highest, logits.amax(-1, keepdim=True))
        # Where nothing is seen yet, any finite number will do.
        reference = highest.masked_fill(highest == -torch.inf, 0)
        weights, earlier = (logits - reference).exp(), (self.highest - reference).exp()
        self.highest = highest
        self.mass = self.mass * earlier + weights.sum(-1, keepdim=True)
        if marked is not None:
            new = (weights * marked).sum(-1, keepdim=True)
            self.marked = self.marked * earlier + new
        self.total = self.total * earlier + weights @ value

    @property
    def mean(self) -> Tensor:
        """The attention output [G, q, d]; 0 where no slot was seen."""
        return self.total / self.mass.clamp(min=torch.finfo(torch.float32).tiny)
