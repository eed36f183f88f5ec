"""Names the layer in which a model's numbers stopped being finite; called only once they have."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kvfidelity.errors import ModelOverflowError


def overflow_error(dtype: torch.dtype, layer: int | None = None) -> ModelOverflowError:
    """The error for a model that computes NaN or infinity.

    Args:
        dtype: of its weights and cache.
        layer: the first one, from 0, whose keys or values are not finite; None: unknown or none.
    """
    name = str(dtype).removeprefix("torch.")
    where = "" if layer is None else f" (first in the keys or values of layer {layer})"
    remedy = (
        "set the model's dtype to bfloat16, which has the range of float32"
        if dtype is torch.float16
        else "load it in float32, and check that its weights are not damaged"
    )
    return ModelOverflowError(f"the model computes NaN or infinity in {name}{where}: {remedy}")


def first_overflow(layers: Iterable[tuple[Tensor, Tensor]]) -> int | None:
    """The first layer whose keys or values [G, n, d] are not all finite; None if all are."""
    for index, tensors in enumerate(layers):
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            return index
    return None
