"""What all policies of one dialogue share: the run that never evicts.

Until its first eviction a run is the never evicted one. So that run is computed once, remembered,
and forked at the turn in which a policy first acts. Beyond that turn it is what a managed run is
compared with: its hidden states give KL(full || managed), its cache the likelihood of a reply had
nothing been evicted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.scores import ScoreBook
from kvfidelity.session.turns import TurnOutcome


@dataclass(frozen=True)
class Mark:
    """A moment of the never evicted run that can be forked from; `step` counts forwards."""

    slots: int
    step: int
    book: ScoreBook | None
    tails: tuple[Tensor | None, ...]


@dataclass
class FullRun:
    """A never evicted run.

    starts, prompts: marks at each turn's start, and once its prompt was in.
    end: mark after the last turn; None if memory ran out.
    outcomes: per turn; fewer than the dialogue has if memory ran out, then `out_of_memory` is set.
    """

    cache: ManagedCache
    starts: list[Mark] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outcomes: list[TurnOutcome] = field(default_factory=list)
    end: Mark | None = None
    out_of_memory: bool = False

    def after(self, turn: int) -> Mark:
        """The moment when a turn that was played was over."""
        if turn + 1 < len(self.starts):
            return self.starts[turn + 1]
        assert self.end is not None
        return self.end

    def mark(self, step: int) -> Mark:
        """The present moment."""
        book = self.cache.scores.fork() if self.cache.scores is not None else None
        return Mark(self.cache.size, step, book, tuple(self.cache.tails))

    def fork(self, mark: Mark, positions: str, query_tail: int) -> ManagedCache:
        """A cache as it was at `mark`, from now on under another position mode."""
        copy = self.cache.fork(mark.slots, mark.book, positions)
        copy.query_tail = query_tail
        copy.tails = [
            None if tail is None or not query_tail else tail[:, -query_tail:] for tail in mark.tails
        ]
        return copy

    def fork_at(self, slots: int) -> ManagedCache:
        """A cache as it was with `slots` slots, without scores: for likelihoods."""
        return self.cache.fork(slots)

    @property
    def nbytes(self) -> int:
        """Bytes held: cache with its workspace, scores and queries at each mark."""
        total = self.cache.nbytes
        total += sum(
            _bytes(layer.rotated_keys) for layer in self.cache.layers if layer.has_workspace
        )
        for mark in [*self.starts, *([self.end] if self.end else [])]:
            total += mark.book.nbytes if mark.book is not None else 0
            total += sum(_bytes(tail) for tail in mark.tails if tail is not None)
        return total + sum(_bytes(outcome.predicted) for outcome in self.outcomes)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
