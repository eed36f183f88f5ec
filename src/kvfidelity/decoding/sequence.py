"""A reply in the making, and the loop that makes several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.sampling import Sampling


@dataclass(frozen=True)
class Reply:
    """A generated reply.

    ids: its tokens without what ends the turn. nll: nats per token under the cache that generated
    it, before temperature. finish: "eos" or "length". first_s: seconds from the prompt's last
    hidden state to the first token. step_s: seconds per further token, None if there was none.
    lanes: how many runs went on at most while it was generated, its own counted; only the times of
    a reply that was alone are its own. lanes_per_s: further tokens per second of all that were
    decoded with it.
    """

    ids: tuple[int, ...]
    nll: tuple[float, ...]
    finish: str
    first_s: float
    step_s: float | None
    concurrency: int = 1
    batch_tokens_per_s: float | None = None


@dataclass
class SequenceState:
    """A reply in the making on one cache under one evictor.

    uniform: fp64 [max_new_tokens], what a sampled token is drawn by. token, nll: the first token.
    fed: tokens known to be in the cache. launched: steps asked of the device. room: the value of
    `launched` at which the evictor has to be asked. made_before: tokens of all lanes before it
    joined. marks: when each step was done. In the end it has a reply or an error of its own.
    """

    cache: ManagedCache
    evictor: Evictor
    sampling: Sampling
    max_new_tokens: int
    uniform: Tensor
    token: int = 0
    nll: float = 0.0
    first_s: float = 0.0
    fed: int = 0
    launched: int = 0
    check_at: int = 0
    concurrency: int = 1
    batch_tokens_before: int = 0
    start_event: Any = None
    step_events: list[Any] = field(default_factory=list)
    reply: Reply | None = None
    error: Exception | None = None

    def plan_next_check(self) -> None:
        """How far it may go before the evictor is asked again."""
        free = self.evictor.steps_without_eviction(self.cache)
        limit = self.max_new_tokens if free is None else self.fed + free
        self.check_at = min(limit, self.max_new_tokens)


class Steps(Protocol):
    """Decode steps of a batch of lanes: feed each lane's token, choose its next one.

    A lane that chose a stop token lives no longer: further steps leave its cache alone.
    """

    def admit(self, index: int, sequence: SequenceState) -> None:
        """Let a lane take part, or go on after its cache was changed."""

    def release(self, index: int) -> None:
        """Let it go, also if it could not be seated."""

    def step(self) -> Any:
        """One step of all lanes; returns a mark of the time when it will be done."""

    def ended(self) -> Sequence[int]:
        """Places whose lane is known to have ended, without waiting for the latest steps."""

    def sync(self, index: int) -> tuple[int, bool]:
        """Wait, note what was fed in the lane's cache; tokens fed in all, and whether it lives."""

    def chosen(self, index: int, count: int) -> tuple[list[int], list[float]]:
        """The first `count` tokens chosen by steps, and their nats."""

    def record_time(self) -> Any:
        """The present time."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Between two marks whose steps are done."""


class Decoder:
    """Makes replies step by step, asking each lane's evictor when it is its time.

    The evictor's moments are those of a loop that feeds one token at a time: whether a threshold
    is reached is known from counting, so steps between need not wait for the device.
    """

    def __init__(self, steps: Steps, batch_size: int) -> None:
        self.steps = steps
        self._sequences: dict[int, SequenceState] = {}
        self._free = list(range(batch_size))[::-1]
        self._batch_tokens = 0

    def add(self, sequence: SequenceState) -> None:
        """Take in a lane whose first token is chosen, and is none that stops."""
        index = self._free.pop()
        self._sequences[index] = sequence
        sequence.plan_next_check()
        try:
            self.steps.admit(index, sequence)
        except BaseException:
            self._release(index)
            raise
        sequence.start_event, sequence.batch_tokens_before = (
            self.steps.record_time(),
            self._batch_tokens,
        )
        self.note_concurrency(len(self._sequences))

    def note_concurrency(self, runs: int) -> None:
        """Note that so many runs go on while these lanes are decoded."""
        for sequence in self._sequences.values():
            sequence.concurrency = max(sequence.concurrency, runs)

    def release_all(self) -> list[SequenceState]:
        """Let all lanes go as they are; those that were there."""
        sequences = list(self._sequences.values())
        for index in list(self._sequences):
            self._release(index)
        return sequences

    @torch.inference_mode()
    def run(self) -> list[SequenceState]:
        """Step until at least one lane has ended; those that have."""
        done: list[SequenceState] = []
        while self._sequences and not done:
            event = self.steps.step()
            self._batch_tokens += len(self._sequences)
            for sequence in self._sequences.values():
                sequence.launched += 1
                sequence.step_events.append(event)
            ended = set(self.steps.ended())
            for index, sequence in list(self._sequences.items()):
                if index not in ended and sequence.launched < sequence.check_at:
                    continue
                try:
                    if self._has_ended(index, sequence):
                        self._finish(index, sequence)
                        done.append(sequence)
                except Exception as error:  # noqa: BLE001 - its policy's, say: none of the others'
                    sequence.error = error
                    self._release(index)
                    done.append(sequence)
        return done

    def _has_ended(self, index: int, sequence: SequenceState) -> bool:
        fed, alive = self.steps.sync(index)
        sequence.evictor.step += fed - sequence.fed
        sequence.fed = fed
        if fed < sequence.launched or fed == sequence.max_new_tokens:
            return True
        if sequence.launched == sequence.check_at:
            before = sequence.cache.slot_table.evictions
            sequence.evictor.before_step(sequence.cache)
            sequence.plan_next_check()
            if alive and sequence.cache.slot_table.evictions != before:
                self.steps.admit(index, sequence)
        return not alive

    def _finish(self, index: int, sequence: SequenceState) -> None:
        ids, nll = self.steps.chosen(index, sequence.fed - 1)
        step_s = (
            self.steps.seconds(sequence.start_event, sequence.step_events[sequence.fed - 1])
            / sequence.fed
        )
        sequences_per_step = (self._batch_tokens - sequence.batch_tokens_before) / sequence.launched
        sequence.reply = Reply(
            ids=(sequence.token, *ids),
            nll=(sequence.nll, *nll),
            finish="length" if sequence.fed == sequence.max_new_tokens else "eos",
            first_s=sequence.first_s,
            step_s=step_s,
            concurrency=sequence.concurrency,
            batch_tokens_per_s=sequences_per_step / step_s if step_s else None,
        )
        self._release(index)

    def _release(self, index: int) -> None:
        self.steps.release(index)
        del self._sequences[index]
        self._free.append(index)
