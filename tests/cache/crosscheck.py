"""Random tensors on which policies are compared with another package's; needs torch and NumPy."""

from __future__ import annotations

import numpy as np
import torch

HIDDEN, SKETCH, LAG, CHUNK, STRETCH = 20, 12, 16, 10, 24
GROUPS, RATIO, SLOTS, SIZE, WINDOW, BUDGET = 2, 3, 120, 16, 8, 30
SEEDS = (0, 1, 2)
#: For KVzip: the last WINDOW slots repeat the parts of the others in turn.
PARTS = ((0, 60), (60, SLOTS - WINDOW))
SINKS, ZIPPED = 4, 28


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """keys and values [G, n, d], queries [H, w, d] of the last w slots; no rotation anywhere.

    history: [H, n, d], un-rotated queries of all slots, for expected attention.
    projection: [H, d, hidden], the output projection by query head.
    """
    draws = torch.Generator().manual_seed(seed)
    return {
        "keys": torch.randn(GROUPS, SLOTS, SIZE, generator=draws) * 2,
        "values": torch.randn(GROUPS, SLOTS, SIZE, generator=draws),
        "queries": torch.randn(GROUPS * RATIO, WINDOW, SIZE, generator=draws) * 2,
        "history": torch.randn(GROUPS * RATIO, SLOTS, SIZE, generator=draws) + 0.5,
        "projection": torch.randn(GROUPS * RATIO, SIZE, HIDDEN, generator=draws),
    }


def filters(seed: int) -> torch.Tensor:
    """[G, d], unit vectors: the main direction of each head's queries, on the mean query's side."""
    found = []
    for queries in tensors(seed)["queries"].double():
        _, vectors = torch.linalg.eigh(queries.T @ queries)
        main = vectors[:, -1]
        found.append(main * (main @ queries.mean(0)).sign())
    return torch.stack(found).view(GROUPS, RATIO, SIZE).mean(1).float()


def sketch(seed: int) -> torch.Tensor:
    """[1, G, d, SKETCH], standard normal: what a policy draws from a view's generator."""
    drawn = np.random.default_rng(seed).standard_normal((1, GROUPS, SIZE, SKETCH))
    return torch.from_numpy(drawn)


def angles(position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [..., d] of positions [...], as for Llama."""
    inverse = 1.0 / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    angle = position[..., None] * torch.cat([inverse, inverse])
    return angle.cos(), angle.sin()
