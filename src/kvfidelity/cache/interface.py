"""The interface between the registered attention function and a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def note_tokens(self, ids: Callable[[], list[int]]) -> None:
        """Note what a forward feeds; `ids` computes the token ids [q], which waits for the device.

        Only caches that keep their text ask for them.
        """


def note_split(
    caches: Sequence[AttentionCache], counts: Sequence[int], ids: Callable[[], list[int]]
) -> None:
    """Give each cache its part of a forward's tokens, `counts[i]` of them for cache i."""
    stop = 0
    for cache, count in zip(caches, counts, strict=True):
        start, stop = stop, stop + count
        cache.note_tokens(lambda start=start, stop=stop: ids()[start:stop])  # type: ignore[misc]
