"""Random tensors on which policies are compared with another package's; needs torch alone."""

from __future__ import annotations

import torch

GROUPS, RATIO, SLOTS, SIZE, WINDOW, BUDGET = 2, 3, 120, 16, 8, 30
SEEDS = (0, 1, 2)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """keys and values [G, n, d], queries [H, w, d] of the last w slots; no rotation anywhere.

    history: [H, n, d], un-rotated queries of all slots, for expected attention.
    """
    draws = torch.Generator().manual_seed(seed)
    return {
        "keys": torch.randn(GROUPS, SLOTS, SIZE, generator=draws) * 2,
        "values": torch.randn(GROUPS, SLOTS, SIZE, generator=draws),
        "queries": torch.randn(GROUPS * RATIO, WINDOW, SIZE, generator=draws) * 2,
        "history": torch.randn(GROUPS * RATIO, SLOTS, SIZE, generator=draws) + 0.5,
    }


def angles(position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [..., d] of positions [...], as for Llama."""
    inverse = 1.0 / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    angle = position[..., None] * torch.cat([inverse, inverse])
    return angle.cos(), angle.sin()
