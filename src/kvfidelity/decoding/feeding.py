"""Feeds known tokens into one or several caches, in as few forwards as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.packed import packed
from kvfidelity.cache.sections import Section
from kvfidelity.cache.tree import TokenTree, TreeCache

# On a GPU a long prompt starts with a round number of tokens: the fastest attention kernel is
# planned again for every new length.
LONG_PROMPT, ROUND_LENGTH = 4096, 1024


@dataclass(frozen=True, eq=False)
class Feed:
    """Tokens to be fed into a cache.

    tree: they are this tree's, and leave the cache as it was; None for a plain sequence.
    latest_is_last: afterwards the latest scores are those of the last token alone.
    sections: consecutive sections of the cache that take these tokens, see `cache.sections`.
    """

    cache: ManagedCache
    ids: Sequence[int]
    tree: TokenTree | None = None
    latest_is_last: bool = False
    sections: Sequence[Section] = ()

    @property
    def attends_alone(self) -> bool:
        """Whether kernels of several caches cannot compute its attention."""
        return self.tree is not None or self.cache.changed_attention is not None

    def parts(self, count: int) -> list[tuple[AttentionCache, int]]:
        """What takes part in a forward of `count` of the tokens, and with how many of them."""
        if self.sections:
            return [(section.cache, section.tokens) for section in self.sections]
        return [(self.cache if self.tree is None else TreeCache(self.cache, self.tree), count)]

    @contextmanager
    def counted(self, *, continues: bool) -> Iterator[None]:
        """Inside, a forward of these tokens counts for its caches' scores as it should."""
        with ExitStack() as stack:
            for section in self.sections:
                stack.enter_context(section.cache.feeding(latest_is_last=True))
            if not self.sections and self.tree is None:
                stack.enter_context(
                    self.cache.feeding(continues=continues, latest_is_last=self.latest_is_last)
                )
            yield

    def chunk_sizes(self, chunk: int, device: str) -> list[int]:
        """Tokens of each forward that feeds them, at most `chunk`; trees and sections are whole."""
        count = len(self.ids)
        sizes = []
        if self.tree is not None or self.sections:
            return [count]
        if device == "cuda" and not self.cache.size and min(count, chunk) >= LONG_PROMPT:
            sizes.append(min(count, chunk) // ROUND_LENGTH * ROUND_LENGTH)
        while (left := count - sum(sizes)) > 0:
            sizes.append(min(left, chunk))
        return sizes


class Model(Protocol):
    """What feeding needs of `decoding.engine.Engine`."""

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""

    @property
    def chunk(self) -> int:
        """Most tokens fed in one forward."""

    def forward(self, tokens: Tensor, cache: AttentionCache) -> Tensor:
        """One forward of tokens int64 [B, q]; hidden states [B, q, hidden]."""


@torch.inference_mode()
def feed_together(model: Model, feeds: Sequence[Feed]) -> list[Tensor]:
    """Feed tokens into several caches; each as one forward of its own, as far as it can tell.

    At most `model.chunk` tokens are in one forward, of all caches together.

    Returns:
        For each feed its hidden states before the output layer [len(ids), hidden]; row j predicts
        token j + 1.
    """
    tokens = [torch.tensor(list(feed.ids), device=model.device) for feed in feeds]
    sizes = [feed.chunk_sizes(model.chunk, model.device.type) for feed in feeds]
    done = [0] * len(feeds)
    parts: list[list[Tensor]] = [[] for _ in feeds]
    for forward in plan_forwards(sizes, model.chunk):
        forward.sort(key=lambda chunk: feeds[chunk[0]].attends_alone)  # see `packed`
        with ExitStack() as stack:
            for index, _ in forward:
                stack.enter_context(feeds[index].counted(continues=done[index] > 0))
            row = torch.cat([tokens[i][done[i] : done[i] + count] for i, count in forward])
            taking = [each for index, count in forward for each in feeds[index].parts(count)]
            cache = packed([cache for cache, _ in taking], [count for _, count in taking])
            hidden = model.forward(row[None], cache)[0]
        counts = [count for _, count in forward]
        for (index, count), part in zip(forward, torch.split(hidden, counts), strict=True):
            parts[index].append(part)
            done[index] += count
    return [torch.cat(part) if len(part) > 1 else part[0] for part in parts]


def plan_forwards(sizes: Sequence[Sequence[int]], limit: int) -> Iterator[list[tuple[int, int]]]:
    """Which chunks share a forward: pairs of a feed's index and its number of tokens.

    Args:
        sizes: of each feed, its chunks in order. A forward takes at most one chunk of a feed.
        limit: most tokens of a forward, unless a single chunk is larger.
    """
    left = [deque(chunks) for chunks in sizes]
    while any(left):
        room = limit
        forward: list[tuple[int, int]] = []
        for index, chunks in enumerate(left):
            if chunks and (chunks[0] <= room or not forward):
                room -= chunks[0]
                forward.append((index, chunks.popleft()))
        yield forward
