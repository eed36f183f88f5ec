"""Chooses the next token, on the device of the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; `top_p` keeps the smallest set of tokens with that probability."""

    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen."""
        return self.temperature == 0


def uniform_draws(count: int, seed: int) -> Tensor:
    """Uniform numbers for a reply of `count` tokens, fp64 [count], the same for every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample_tokens(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """The next token of each sequence, int64 [B], without waiting for the device.

    Tokens are sorted by probability, and a uniform number selects one in the cumulative sum. So
    equal numbers give equal tokens on every device.

    Args:
        logits: [B, vocabulary]. temperature, top_p: fp64 [B], see Sampling. uniform: fp64 [B].
    """
    best = logits.argmax(-1)
    safe_temperature = torch.where(temperature > 0, temperature, 1.0)
    probabilities = torch.softmax(logits.double() / safe_temperature[:, None], dim=-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    preceding = ordered.cumsum(-1) - ordered
    cumulative = torch.where(preceding >= top_p[:, None], 0.0, ordered).cumsum(-1)
    index = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    drawn = tokens.gather(-1, index.clamp_max(tokens.shape[-1] - 1))[:, 0]
    return torch.where(temperature > 0, drawn, best)
