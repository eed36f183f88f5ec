"""Consecutive sections of one sequence in one forward, with the cache's state after each.

Scores and recent queries after each section are those of feeding one after another, which would
take a forward for each. A section is a cache whose keys and values are in the buffers of the
sequence's cache: it sees what the sections before it append in the same forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvfidelity.cache.managed import ManagedCache


@dataclass(frozen=True)
class Section:
    """Part of a sequence: its own tokens, and a cache of everything up to their end.

    The cache holds what is before them until the forward appends them.
    """

    cache: ManagedCache
    tokens: int


def sections_of(cache: ManagedCache, tokens: Sequence[int]) -> list[Section]:
    """Sections that take the next tokens of `cache`, `tokens[i]` the i-th.

    Args:
        cache: not empty; not used until `join` has been called.
    """
    cache.reserve(cache.size + sum(tokens))
    return [Section(cache.section(sum(tokens[:i])), count) for i, count in enumerate(tokens)]


def join(cache: ManagedCache, sections: Sequence[Section]) -> None:
    """After the forward: complete each section's scores and recent queries by what came before,
    and move `cache` to the end of the last section."""
    before = cache
    for section in sections:
        part = section.cache
        if part.scores is not None and before.scores is not None:
            part.scores.add_earlier(before.scores)
        if part.recent_queries is not None and before.recent_queries is not None:
            part.recent_queries.take_earlier(before.recent_queries)
        before = part
    cache.note_decoded(before.size - cache.size)
    cache.scores = before.scores.fork() if before.scores is not None else None
    recent = before.recent_queries
    cache.recent_queries = recent.fork() if recent is not None else None
