"""Quality without a judge: likelihoods and divergences of next-token distributions, in nats."""

from __future__ import annotations

import torch
from torch import Tensor


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target, in nats.

    Args:
        logits: [m, vocabulary], any floating dtype; the softmax is taken in fp32.
        targets: int64 [m].

    Returns:
        fp32 [m].
    """
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def kl_divergence(baseline: Tensor, managed: Tensor) -> Tensor:
    """KL(baseline || managed) of next-token distributions, in nats.

    Args:
        baseline, managed: log-probabilities [..., vocabulary], fp32, without evictions and with
            the managed cache; their leading sizes are broadcast.

    Returns:
        fp32 [...], at least 0 up to rounding.
    """
    return (baseline.exp() * (baseline - managed)).sum(-1)
