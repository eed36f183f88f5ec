"""A decoder whose layers keep only their input for the gradient, so that memory does not bound a
training."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint


def recompute_layers(decoder: Any) -> None:
    """Let the backward pass compute each layer again from its input (arXiv 1604.06174).

    Losses and gradients are the same. Transformers' own switch works in training mode alone and
    turns the cache off, through which an attached model attends.

    Args:
        decoder: of an attached model, with `layers`. What its forwards do must not depend on state
            that changes between the forward and the backward pass.
    """
    for layer in decoder.layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
