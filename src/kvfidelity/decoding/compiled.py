"""Compiled decoder layers: the operations between matrix products and attention become one kernel.

All layers share one compilation, since nothing in it depends on a layer's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kvfidelity.cache.triton.fed_caches import FedCaches

#: Bytes of the largest weight of a layer from which its products are tuned; models of 3B have it.
TUNED_BYTES = 32 << 20
#: Forwards of several caches before layers are compiled for them: that takes as long as many.
FORWARDS_BEFORE_COMPILING = 8


def compile_for_steps(layers: Sequence[Any]) -> Callable[..., Any]:
    """A compiled call of a layer for decode steps: of one shape, and read at full speed."""
    # With a batch of one: compute the input of a matrix product before it, not again for each of
    # its rows; and tune the products of a large model to read weights at the memory's full speed.
    # For a small one tuning takes longer (7 s) than many replies.
    weight = max(each.numel() * each.element_size() for each in layers[0].parameters())
    options: dict[str, Any] = {
        "coordinate_descent_tuning": weight >= TUNED_BYTES,
        "realize_opcount_threshold": 4,
    }
    compiled: Callable[..., Any] = torch.compile(
        _fresh_forward(), fullgraph=True, dynamic=False, options=options
    )
    return compiled


@contextmanager
def layers_called_by(call: Callable[..., Any], layers: Sequence[Any]) -> Iterator[None]:
    """Inside, `call(layer, ...)` replaces each layer's forward."""
    for layer in layers:
        layer.forward = partial(call, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class FeedCompiler:
    """Compiles a model's layers for forwards that feed several caches, after some of them."""

    def __init__(self) -> None:
        # By whether caches are ragged, whose forwards have other code.
        self._forwards = {False: 0, True: 0}
        self._calls: dict[bool, Callable[..., Any]] = {}

    @contextmanager
    def during(
        self, layers: Sequence[Any], caches: FedCaches, heads: int, groups: int
    ) -> Iterator[None]:
        """Inside is one forward of `caches`.

        Args:
            heads, groups: query heads and kv heads of a layer.
        """
        kind = caches.ragged
        self._forwards[kind] += 1
        if self._forwards[kind] <= FORWARDS_BEFORE_COMPILING or not caches.can_start:
            yield
            return
        if kind not in self._calls:
            self._calls[kind] = torch.compile(_fresh_forward(), fullgraph=True, dynamic=True)
        caches.start([layer.self_attn for layer in layers], heads, groups)
        with layers_called_by(self._calls[kind], layers):
            yield


def _fresh_forward() -> Callable[..., Any]:
    """A copy of `_forward` with code of its own: PyTorch stops after eight compilations of one."""
    return FunctionType(_forward.__code__.replace(), globals())


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)
