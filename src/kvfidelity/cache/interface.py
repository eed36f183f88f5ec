"""The interface between the registered attention function and a cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache


class AttentionCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """A cache that computes attention over its slots itself."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One attention module's output [B, q, H, d].

        Args:
            query: [B, H, q, d], un-rotated.
            key, value: what `update` returned.
        """
        raise NotImplementedError
