"""The baseline of one dialogue, with checkpoints from which other runs are forked.

Until its first eviction, a run equals the baseline. So the baseline is computed once, and each run
is forked from it at the turn in which its policy first evicts. After that turn the baseline is what
a run is compared with: its hidden states give KL(baseline || run), and its cache gives the
likelihood of a reply with nothing evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.recent_queries import RecentQueries
from kvfidelity.cache.scores import AttentionScores
from kvfidelity.decoding.engine import Scheduler
from kvfidelity.generation.turns import TurnOutcome


@dataclass(frozen=True)
class Checkpoint:
    """A moment of the baseline that a run can be forked from.

    slots: cached slots then. step: forwards until then. scores: attention scores then, None if not
    collected. recent_queries: the latest queries then, None if not kept.
    """

    slots: int
    step: int
    scores: AttentionScores | None
    recent_queries: RecentQueries | None

    @classmethod
    def of(cls, cache: ManagedCache, step: int) -> Checkpoint:
        """The present state of a cache; `step`: forwards so far."""
        scores = cache.scores.fork() if cache.scores is not None else None
        recent = cache.recent_queries
        queries = recent.fork() if recent is not None else None
        return cls(cache.size, step, scores, queries)


@dataclass
class BaselineRun:
    """A run with nothing evicted.

    starts: a checkpoint at each turn's start. prompts: cached slots after each turn's prompt.
    end: the checkpoint after the last turn; None if memory ran out.
    outcomes: one per turn; fewer than the dialogue has if memory ran out (`out_of_memory`).
    """

    cache: ManagedCache
    starts: list[Checkpoint] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    outcomes: list[TurnOutcome] = field(default_factory=list)
    end: Checkpoint | None = None
    out_of_memory: bool = False

    def end_of_turn(self, turn: int) -> Checkpoint:
        """The checkpoint after a turn."""
        if turn + 1 < len(self.starts):
            return self.starts[turn + 1]
        assert self.end is not None
        return self.end

    def fork(self, checkpoint: Checkpoint, positions: str, query_window: int) -> ManagedCache:
        """A copy of the cache as it was at `checkpoint`, under another position mode."""
        copy = self.cache.fork(checkpoint.slots, checkpoint.scores, positions)
        recent = checkpoint.recent_queries
        copy.recent_queries = (
            recent.fork(query_window) if recent is not None and query_window else None
        )
        return copy

    def fork_at(self, slots: int) -> ManagedCache:
        """A copy of the cache as it was with `slots` slots, without scores: for likelihoods."""
        return self.cache.fork(slots)

    @property
    def nbytes(self) -> int:
        """Bytes held: the cache with its workspace, and each checkpoint's scores and queries."""
        total = self.cache.nbytes
        total += sum(
            _bytes(layer.rotated_keys) for layer in self.cache.layers if layer.has_workspace
        )
        for checkpoint in [*self.starts, *([self.end] if self.end else [])]:
            total += checkpoint.scores.nbytes if checkpoint.scores is not None else 0
            recent = checkpoint.recent_queries
            total += recent.nbytes if recent is not None else 0
        return total + sum(_bytes(outcome.predicted) for outcome in self.outcomes)


class BaselineStore(Protocol):
    """Keeps baselines, so that runs share them; see `prefix.cache.PrefixCache`."""

    def get(
        self, key: str, compute: Callable[[], BaselineRun], scheduler: Scheduler | None = None
    ) -> BaselineRun:
        """The baseline under `key`, computed if it is not kept.

        Args:
            scheduler: of the batch that the caller runs in, if any. If another run of the batch
                is computing the same baseline, this one waits for it.
        """


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
