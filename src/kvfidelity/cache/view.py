"""What a policy may look at: a read-only view of one cache at one moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.attention import window_scores
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.scores import AttentionScores, NotCollectedError, ScoreHistory

Span = tuple[int, int]


@dataclass(frozen=True)
class LayerView:
    """One layer's tensors: keys and values [G, n, d]; the latest queries, un-rotated [H, w, d].

    rotate: computes the rotated keys [G, n, d]; few policies use them.
    project: reads the output projection; None where a policy does not declare it.
    """

    keys: Tensor
    rotate: Callable[[], Tensor]
    values: Tensor
    queries: Tensor | None = None
    project: Callable[[], Tensor] | None = None

    @property
    def output_projection(self) -> Tensor:
        """The weights that mix the heads' outputs [H, d, hidden]: a head adds its output times its
        part to the residual stream.

        Raises:
            NotCollectedError: the policy does not declare it, or the model has none of this form.
        """
        if self.project is None:
            raise NotCollectedError(
                "no output projection: a policy declares `needs_output_projection = True`"
            )
        return self.project()

    @property
    def rotated_keys(self) -> Tensor:
        """Keys rotated by their slots' positions [G, n, d]."""
        return self.rotate()


@dataclass(frozen=True)
class CacheView:
    """One cache at the moment of an eviction.

    budget: how many slots remain; at least the protected ones.
    protected: half-open spans of slots that survive, whatever their priority.
    token_index, position: int64 [L', G', n], see SlotTable; on the device once keep sets differ by
        layer or kv head.
    next_position, tokens_seen: position and token index of the next query.
    rng: seeded by the run's seed and the number of the eviction, so that runs that differ in the
        position mode only draw the same numbers.
    scores: None if none are collected; not `available` where a policy must do without.
    angles: position [..., m] -> (cos, sin), fp32 [..., m, r].
    """

    budget: int
    token_index: Tensor
    position: Tensor
    next_position: int
    tokens_seen: int
    rng: np.random.Generator
    layers: Sequence[LayerView]
    scaling: float = 1.0
    scores: AttentionScores | None = None
    protected: tuple[Span, ...] = ()
    angles: Callable[[Tensor, torch.device], tuple[Tensor, Tensor]] | None = None

    @property
    def slots(self) -> int:
        """n, the number of slots now."""
        return self.token_index.shape[-1]

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

    def limited_to(
        self, *, scores: bool, query_window: int, output_projection: bool = False
    ) -> CacheView:
        """The view of a policy that declares these needs.

        Whatever else a cache collects, for the baseline or for metrics, must not change a ranking.

        Args:
            scores: whether the policy ranks by attention scores.
            query_window: most of the latest queries that it looks through; never more than there
                are slots, because `window_attention` needs a slot for each.
            output_projection: whether it looks at the layers' output projections.
        """
        window = min(query_window, self.slots)
        layers = [
            replace(
                layer,
                queries=layer.queries[:, -window:]
                if layer.queries is not None and window
                else None,
                project=layer.project if output_projection else None,
            )
            for layer in self.layers
        ]
        return replace(self, layers=layers, scores=self.scores if scores else None)

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
    recent = cache.recent_queries
    layers = [
        LayerView(
            layer.live_keys,
            partial(cache.rotated_keys, index),
            layer.live_values,
            recent.of_layer(index) if recent is not None else None,
            partial(cache.rotary.output_projection, index, layer.live_values.shape[-1]),
        )
        for index, layer in enumerate(cache.layers)
    ]
    return CacheView(
        budget=max(budget, sum(stop - start for start, stop in protected)),
        token_index=cache.slot_table.token_index,
        position=cache.slot_table.position,
        next_position=cache.slot_table.next_position,
        tokens_seen=cache.slot_table.tokens_seen,
        rng=np.random.default_rng((seed, cache.slot_table.evictions)),
        layers=layers,
        scaling=cache.scaling,
        scores=cache.scores if scores else AttentionScores(len(layers)),
        protected=protected,
        angles=cache.rotary.angles,
    )
