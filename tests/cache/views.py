"""Cache views of random tensors, for tests of policies alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from kvfidelity.cache.scores import AttentionScores
from kvfidelity.cache.view import CacheView, LayerView, Span

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
    )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def angles(position: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 1.0 / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    angle = position[..., None] * torch.cat([inverse, inverse])
    return angle.cos(), angle.sin()
