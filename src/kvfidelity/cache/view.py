"""What a policy may look at: a read-only view of one cache at one moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.attention import window_scores
from kvfidelity.cache.layer_view import LayerView, LayerViews
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.scores import AttentionScores, NotCollectedError, ScoreHistory

if TYPE_CHECKING:
    from kvfidelity.cache.calibration import Calibration
    from kvfidelity.cache.repetition import Repetition

Span = tuple[int, int]


@dataclass(frozen=True)
class CacheView:
    """One cache at the moment of an eviction.

    budget: how many slots remain; at least the protected ones.
    protected: half-open spans of slots that survive, whatever their priority.
    token_index, position: int64 [L', G', n], see SlotTable; on the device once keep sets differ by
        layer or kv head.
    next_position, tokens_seen: position and token index of the next query.
    layers: read when they are looked at; the cache must not have changed since.
    rng: seeded by the run's seed and the number of the eviction, so that runs that differ in the
        position mode only draw the same numbers.
    scores: None if none are collected; not `available` where a policy must do without.
    angles: position [..., m] -> (cos, sin), fp32 [..., m, r].
    messages: token indices at which messages begin; None where they are not known.
    mode: what becomes of positions at this eviction.
    known_heads, repetition: see `calibration` and `repeated_attention`.
    heads: views of each layer's kv heads alone, if these hold different numbers of slots; then
        `layers` is empty, `next_position` is None, and rows of `token_index` and `position` are
        aligned at the right, with -1 before a head's slots.
    """

    budget: int
    token_index: Tensor
    position: Tensor
    next_position: Any
    tokens_seen: int
    rng: np.random.Generator
    layers: Sequence[LayerView]
    scaling: float = 1.0
    scores: AttentionScores | None = None
    protected: tuple[Span, ...] = ()
    angles: Callable[[Tensor, torch.device], tuple[Tensor, Tensor]] | None = None
    messages: tuple[int, ...] | None = None
    heads: tuple[tuple[CacheView, ...], ...] = ()
    mode: PositionMode = PositionMode.ORIGINAL
    known_heads: Calibration | None = None
    repetition: Repetition | None = None

    @property
    def slots(self) -> int:
        """n, the number of slots now; per kv head on average if heads differ."""
        if self.heads:
            return int(self.counts.sum()) // self.counts.numel()
        return self.token_index.shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """L and G, the numbers of layers and of kv heads."""
        if self.heads:
            return len(self.heads), len(self.heads[0])
        if isinstance(self.layers, LayerViews):
            return len(self.layers), self.layers.groups
        return len(self.layers), self.layers[0].keys.shape[0]

    @cached_property
    def counts(self) -> Tensor:
        """Slots of each kv head now, int64 [L, G]."""
        if self.heads:
            return torch.tensor([[head.slots for head in layer] for layer in self.heads])
        return torch.full(self.grid, self.slots)

    def by_head(self) -> tuple[tuple[CacheView, ...], ...]:
        """A view of each layer's kv heads alone: one layer of one kv head, with the query heads of
        that one. The budget of each is this view's."""
        if self.heads:
            return self.heads
        layers, groups = self.grid
        return tuple(
            tuple(self._of_head(layer, group) for group in range(groups)) for layer in range(layers)
        )

    @property
    def has_scores(self) -> bool:
        """Whether attention scores exist: not before a turn under `trigger: paper`.

        Raises:
            NotCollectedError: none are collected.
        """
        return self._collected_scores().available

    def attention(self, history: ScoreHistory | str) -> Tensor:
        """Attention column sums, fp32 [L, H, n].

        Raises:
            NotCollectedError: no scores exist.
        """
        return self._collected_scores().rows(history)

    def message_numbers(self) -> Tensor:
        """The number of the message that each slot's token is in, int64 [L', G', n].

        Raises:
            NotCollectedError: no messages are known.
        """
        if self.messages is None:
            raise NotCollectedError("no messages are known: runs of the workflow know them")
        starts = torch.tensor(self.messages, device=self.token_index.device)
        return torch.searchsorted(starts, self.token_index.contiguous(), right=True)

    @property
    def calibration(self) -> Calibration:
        """What is known of the model's heads, measured once on a text.

        Raises:
            NotCollectedError: the policy does not declare it, or the model was not calibrated.
        """
        if self.known_heads is None:
            raise NotCollectedError("no calibration: a policy declares `needs_calibration = True`")
        return self.known_heads

    def repeated_attention(self, sinks: int, chunk: int) -> Tensor:
        """The most attention that each slot gets while the model repeats the cached text in parts
        of `chunk` tokens, fp32 [L, G, n]; see `Repetition.attention`. It takes an extra forward.

        Raises:
            NotCollectedError: the policy does not declare it, or the cache does not know its text.
        """
        if self.repetition is None:
            raise NotCollectedError(
                "no extra forward: a policy declares `needs_extra_forward = True`"
            )
        return self.repetition.attention(sinks, chunk)

    def queries_seen(self) -> Tensor:
        """How many queries each slot has been visible to, its own included: int64 [L', G', n]."""
        return self.tokens_seen - self.token_index

    def window_attention(self, layer: int) -> Tensor:
        """Attention of the latest w queries over all slots, fp32 [H, w, n].

        The queries are rotated by the positions right before `next_position`. These are their own,
        unless an eviction happened since.
        """
        view = self.layers[layer]
        queries = self.rotated_queries(layer)
        return window_scores(queries, view.rotated_keys, self.scaling)

    def recent_queries(self, layer: int) -> Tensor:
        """The latest w queries, un-rotated [H, w, d].

        Raises:
            NotCollectedError: the cache keeps no queries.
        """
        queries = self.layers[layer].queries
        if queries is None:
            raise NotCollectedError("no queries are kept: a policy declares its `query_window`")
        return queries

    def rotated_queries(self, layer: int) -> Tensor:
        """The latest w queries, rotated [H, w, d].

        Raises:
            NotCollectedError: the cache keeps no queries.
        """
        queries = self.recent_queries(layer)
        assert self.angles is not None
        window = queries.shape[1]
        positions = torch.arange(self.next_position - window, self.next_position)
        return rotate(queries, *self.angles(positions, queries.device))

    def with_messages(self, starts: Sequence[int]) -> CacheView:
        """The same view, of a cache whose messages begin at these token indices."""
        heads = tuple(tuple(head.with_messages(starts) for head in row) for row in self.heads)
        return replace(self, messages=tuple(starts), heads=heads)

    def with_model(
        self, known_heads: Calibration | None, repetition: Repetition | None
    ) -> CacheView:
        """The same view, with what is known of the model and an extra forward through it."""
        heads = tuple(
            tuple(
                head.with_model(
                    known_heads and known_heads.of_head(layer, group),
                    repetition and repetition.of_head(layer, group),
                )
                for group, head in enumerate(row)
            )
            for layer, row in enumerate(self.heads)
        )
        return replace(self, known_heads=known_heads, repetition=repetition, heads=heads)

    def limited_to(
        self,
        *,
        scores: bool,
        query_window: int,
        output_projection: bool = False,
        calibration: bool = False,
        extra_forward: bool = False,
    ) -> CacheView:
        """The view of a policy that declares these needs.

        Whatever else a cache collects, for the baseline or for metrics, must not change a ranking.

        Args:
            scores: whether the policy ranks by attention scores.
            query_window: most of the latest queries that it looks through; never more than there
                are slots, because `window_attention` needs a slot for each.
            output_projection: whether it looks at the layers' output projections.
            calibration: whether it looks at what is known of the model's heads.
            extra_forward: whether it feeds the text again.
        """
        window = min(query_window, self.slots)
        nothing_more = (self.known_heads is None or calibration) and (
            self.repetition is None or extra_forward
        )
        if (
            not self.heads
            and nothing_more
            and self._is_limited_to(scores, window, output_projection)
        ):
            return self  # heads are looked at one by one, and each by a policy inside a policy too
        heads = tuple(
            tuple(
                head.limited_to(
                    scores=scores,
                    query_window=query_window,
                    output_projection=output_projection,
                    calibration=calibration,
                    extra_forward=extra_forward,
                )
                for head in layer
            )
            for layer in self.heads
        )
        return replace(
            self,
            layers=LayerViews.of(self.layers).limited_to(window, projects=output_projection),
            scores=self.scores if scores else None,
            heads=heads,
            known_heads=self.known_heads if calibration else None,
            repetition=self.repetition if extra_forward else None,
        )

    def _is_limited_to(self, scores: bool, window: int, output_projection: bool) -> bool:
        layers = self.layers
        return (
            (scores or self.scores is None)
            and isinstance(layers, LayerViews)
            and layers.shows_at_most(window, projects=output_projection)
        )

    def _of_head(self, layer: int, group: int) -> CacheView:
        view, (_, groups) = self.layers[layer], self.grid
        own = slice(group, group + 1)
        row = tuple(
            min(i, size - 1)
            for i, size in zip((layer, group), self.token_index.shape, strict=False)
        )
        return replace(
            self,
            token_index=self.token_index[row][None, None],
            position=self.position[row][None, None],
            layers=[
                LayerView(
                    keys=view.keys[own],
                    rotate=lambda: view.rotated_keys[own],
                    values=view.values[own],
                    queries=None if view.queries is None else _part(view.queries, group, groups),
                    project=None
                    if view.project is None
                    else lambda: _part(view.output_projection, group, groups),
                )
            ],
            scores=None if self.scores is None else self.scores.of_head(layer, group, groups),
            known_heads=self.known_heads and self.known_heads.of_head(layer, group),
            repetition=self.repetition and self.repetition.of_head(layer, group),
        )

    def _collected_scores(self) -> AttentionScores:
        if self.scores is None:
            raise NotCollectedError("no attention scores: a policy declares `needs_scores = True`")
        return self.scores


def view_of(
    cache: ManagedCache,
    budget: int,
    seed: int,
    protected: tuple[Span, ...] = (),
    *,
    scores: bool = True,
) -> CacheView:
    """The view of a managed cache; as before its first scored forward if `scores` is false."""
    if cache.slot_table.is_ragged:
        return _ragged_view(cache, budget, seed, protected, scores)
    return CacheView(
        budget=_at_least_protected(budget, protected),
        token_index=cache.slot_table.token_index,
        position=cache.slot_table.position,
        next_position=cache.slot_table.next_position,
        tokens_seen=cache.slot_table.tokens_seen,
        rng=_generator(cache, seed),
        layers=LayerViews(partial(_layer, cache), len(cache.layers), cache.groups),
        scaling=cache.scaling,
        scores=cache.scores if scores else AttentionScores(len(cache.layers)),
        protected=protected,
        angles=cache.rotary.angles,
        mode=cache.slot_table.mode,
    )


def view_again(view: CacheView, cache: ManagedCache, budget: int, seed: int) -> CacheView:
    """A view of the same cache at the same moment with another budget, and with numbers to draw as
    if none had been drawn. Not of kv heads that hold different numbers of slots."""
    budget = _at_least_protected(budget, view.protected)
    return replace(view, budget=budget, rng=_generator(cache, seed))


def _at_least_protected(budget: int, protected: tuple[Span, ...]) -> int:
    return max(budget, sum(stop - start for start, stop in protected))


def _generator(cache: ManagedCache, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, cache.slot_table.evictions))


def _layer(cache: ManagedCache, index: int) -> LayerView:
    layer, recent = cache.layers[index], cache.recent_queries
    values = layer.live_values
    return LayerView(
        layer.live_keys,
        partial(cache.rotated_keys, index),
        values,
        recent.of_layer(index) if recent is not None else None,
        partial(cache.rotary.output_projection, index, values.shape[-1]),
    )


def _ragged_view(
    cache: ManagedCache, budget: int, seed: int, protected: tuple[Span, ...], scores: bool
) -> CacheView:
    table = cache.slot_table.on_cpu()  # at once: heads are looked at one by one
    if any(stop != cache.size for _, stop in protected):
        raise ValueError("of a cache whose kv heads differ only the latest slots can be protected")
    newest = max((stop - start for start, stop in protected), default=0)
    rng = _generator(cache, seed)
    heads = []
    firsts, following = table.pad.tolist(), table.next_positions.tolist()
    for index, layer in enumerate(cache.layers):
        own_slots = layer.heads
        groups = len(own_slots)
        queries = None if cache.recent_queries is None else cache.recent_queries.of_layer(index)
        row = []
        for group, head in enumerate(own_slots):
            own = slice(firsts[index][group], None)
            found = cache.scores if scores else AttentionScores(1)
            if found is not None and scores:
                found = found.of_head(index, group, groups, head.slots)
            view = CacheView(
                budget=min(max(budget, newest), head.slots),
                token_index=table.token_index[index, None, None, group, own],
                position=table.position[index, None, None, group, own],
                next_position=following[index][group],
                tokens_seen=table.tokens_seen,
                rng=rng,
                layers=[_head_layer(cache, index, group, head, queries, groups)],
                scaling=cache.scaling,
                scores=found,
                protected=((head.slots - newest, head.slots),) if newest else (),
                angles=cache.rotary.angles,
                mode=table.mode,
            )
            row.append(view)
        heads.append(tuple(row))
    return CacheView(
        budget=max(budget, newest),
        token_index=table.token_index,
        position=table.position,
        next_position=table.common_next_position,
        tokens_seen=table.tokens_seen,
        rng=rng,
        layers=[],
        scaling=cache.scaling,
        scores=cache.scores if scores else AttentionScores(len(cache.layers)),
        protected=protected,
        angles=cache.rotary.angles,
        heads=tuple(heads),
        mode=table.mode,
    )


def _head_layer(
    cache: ManagedCache,
    index: int,
    group: int,
    head: Any,
    queries: Tensor | None,
    groups: int,
) -> LayerView:
    return LayerView(
        keys=head.live_keys,
        rotate=partial(cache.rotated_head_keys, index, group),
        values=head.live_values,
        queries=None if queries is None else _part(queries, group, groups),
        project=lambda: _part(
            cache.rotary.output_projection(index, head.live_values.shape[-1]), group, groups
        ),
    )


def _part(by_query_head: Tensor, group: int, groups: int) -> Tensor:
    """The query heads [H / G, ...] of one kv head, of [H, ...]."""
    ratio = by_query_head.shape[0] // groups
    return by_query_head[group * ratio : (group + 1) * ratio]
