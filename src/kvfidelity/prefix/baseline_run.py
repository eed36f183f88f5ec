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
from kvfidelity.cache.scores import AttentionScores
from kvfidelity.generation.turns import TurnOutcome


@dataclass(frozen=True)
class Checkpoint:
    """A moment of the never evicted run that can be forked from; `step` counts forwards."""

    slots: int
    step: int
    scores: AttentionScores | None
    recent_queries: tuple[Tensor | None, ...]


@dataclass
class BaselineRun:
    """A never evicted run.

    starts, prompts: marks at each turn's start, and once its prompt was in.
    end: mark after the last turn; None if memory ran out.
    outcomes: per turn; fewer than the dialogue has if memory ran out, then `out_of_memory` is set.
    """

    cache: ManagedCache
    starts: list[Checkpoint] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outcomes: list[TurnOutcome] = field(default_factory=list)
    end: Checkpoint | None = None
    out_of_memory: bool = False

    def end_of_turn(self, turn: int) -> Checkpoint:
        """The moment when a turn that was played was over."""
        if turn + 1 < len(self.starts):
            return self.starts[turn + 1]
        assert self.end is not None
        return self.end

    def checkpoint(self, step: int) -> Checkpoint:
        """The present moment."""
        scores = self.cache.scores.fork() if self.cache.scores is not None else None
        return Checkpoint(self.cache.size, step, scores, tuple(self.cache.recent_queries))

    def fork(self, checkpoint: Checkpoint, positions: str, query_window: int) -> ManagedCache:
        """A cache as it was at `mark`, from now on under another position mode."""
        copy = self.cache.fork(checkpoint.slots, checkpoint.scores, positions)
        copy.query_window = query_window
        copy.recent_queries = [
            None if queries is None or not query_window else queries[:, -query_window:]
            for queries in checkpoint.recent_queries
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
        for checkpoint in [*self.starts, *([self.end] if self.end else [])]:
            total += checkpoint.scores.nbytes if checkpoint.scores is not None else 0
            total += sum(
                _bytes(queries) for queries in checkpoint.recent_queries if queries is not None
            )
        return total + sum(_bytes(outcome.predicted) for outcome in self.outcomes)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
