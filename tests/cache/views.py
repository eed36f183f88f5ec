"""Cache views of random tensors, for tests of policies alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from kvfidelity.cache.calibration import Calibration
from kvfidelity.cache.layer_view import LayerView
from kvfidelity.cache.scores import AttentionScores
from kvfidelity.cache.view import CacheView, Span

LAYERS, GROUPS, RATIO, SIZE, HIDDEN = 2, 2, 3, 8, 5


def random_view(
    slots: int,
    budget: int,
    protected: tuple[Span, ...] = (),
    seed: int = 0,
    queries: int = 32,
    scored: bool = True,
) -> CacheView:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    seen = 3 * slots
    token = torch.randperm(seen, generator=rng)[:slots].sort().values[None, None]
    layers = [
        LayerView(
            keys=normal(GROUPS, slots, SIZE),
            rotate=partial(_same, normal(GROUPS, slots, SIZE)),
            values=normal(GROUPS, slots, SIZE),
            queries=normal(GROUPS * RATIO, min(queries, slots), SIZE),
            project=partial(_same, normal(GROUPS * RATIO, SIZE, HIDDEN)),
        )
        for _ in range(LAYERS)
    ]
    scores = AttentionScores(LAYERS)
    if scored:
        for layer in range(LAYERS):
            scores.add(layer, normal(GROUPS * RATIO, slots).abs())
    return CacheView(
        budget=budget,
        token_index=token,
        position=token,
        next_position=seen,
        tokens_seen=seen,
        rng=np.random.default_rng((seed, 0)),
        layers=layers,
        scaling=SIZE**-0.5,
        scores=scores,
        protected=protected,
        angles=angles,
        known_heads=Calibration(normal(LAYERS, GROUPS, SIZE), normal(LAYERS, GROUPS).abs()),
        repetition=Repeated(normal(LAYERS, GROUPS, slots).abs()),  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Repeated:
    """Random weights [L, G, n], as an extra forward would give them."""

    weights: torch.Tensor

    def of_head(self, layer: int, head: int) -> Repeated:
        return Repeated(self.weights[layer : layer + 1, head : head + 1])

    def attention(self, sinks: int, chunk: int) -> torch.Tensor:
        return self.weights


def ragged_view(
    counts: torch.Tensor, budget: int, newest: int = 0, seed: int = 0, scored: bool = True
) -> CacheView:
    """A view of kv heads that hold `counts` [L, G] slots; the `newest` last ones are protected."""
    slots = int(counts.max())
    whole = random_view(slots, budget, seed=seed, scored=scored)
    heads = tuple(
        tuple(_latest(head, int(count), budget, newest) for head, count in zip(*row, strict=True))
        for row in zip(whole.by_head(), counts, strict=True)
    )
    live = torch.arange(slots) >= slots - counts[..., None]
    index = whole.token_index.expand(*counts.shape, -1).masked_fill(~live, -1)
    mean = int(counts.sum()) // counts.numel()
    return replace(
        whole,
        token_index=index,
        position=index,
        next_position=None,
        layers=[],
        heads=heads,
        protected=((mean - newest, mean),) if newest else (),
    )


def _latest(head: CacheView, count: int, budget: int, newest: int) -> CacheView:
    """The last `count` slots of a view of one kv head."""
    layer = head.layers[0]
    assert layer.queries is not None and head.scores is not None
    assert isinstance(head.repetition, Repeated)
    scores = AttentionScores(1)
    if head.scores.available:
        scores.add(0, head.attention("latest")[0, :, -count:])
    return replace(
        head,
        budget=min(max(budget, newest), count),
        token_index=head.token_index[..., -count:],
        position=head.position[..., -count:],
        layers=[
            replace(
                layer,
                keys=layer.keys[:, -count:],
                values=layer.values[:, -count:],
                rotate=partial(_same, layer.rotated_keys[:, -count:]),
                queries=layer.queries[:, -count:],
            )
        ],
        scores=scores,
        protected=((count - newest, count),) if newest else (),
        repetition=Repeated(head.repetition.weights[..., -count:]),  # type: ignore[arg-type]
    )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def angles(position: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 1.0 / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    angle = position[..., None] * torch.cat([inverse, inverse])
    return angle.cos(), angle.sin()
