"""A reply that is being generated, and the loop that decodes a batch of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.overflow import overflow_error
from kvfidelity.decoding.sampling import Sampling


@dataclass(frozen=True)
class Reply:
    """A generated reply.

    ids: its tokens without the stop token. nll: nats of each token under the cache that generated
    it, before temperature. finish: "eos" or "length". first_s: seconds from the prompt's last
    hidden state to the first token. step_s: seconds per further token, None if there was none.
    The times describe this reply alone only if no other run was active meanwhile.
    batch_tokens_per_s: further tokens per second of all replies decoded with it.
    """

    ids: tuple[int, ...]
    nll: tuple[float, ...]
    finish: str
    first_s: float
    step_s: float | None
    batch_tokens_per_s: float | None = None


@dataclass
class SequenceState:
    """A reply that is being generated on one cache with one evictor.

    uniform: fp64 [max_new_tokens], uniform random numbers for sampling. token, nll: the first token
    and its NLL. fed: its tokens known to be in the cache. launched: steps launched on the device.
    check_at: the value of `launched` at which the evictor must be asked. batch_tokens_before:
    tokens that the batch had decoded when this sequence was added. step_events: the time of each
    step's end. measuring_s: seconds between steps that measuring its evictions took. At
    the end either `reply` or `error` is set.
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
    batch_tokens_before: int = 0
    start_event: Any = None
    step_events: list[Any] = field(default_factory=list)
    measuring_s: float = 0.0
    reply: Reply | None = None
    error: Exception | None = None

    @property
    def ragged(self) -> bool:
        """Whether kv heads hold different numbers of slots, or may while the reply is decoded."""
        return self.cache.slot_table.is_ragged or self.evictor.policy.ragged

    def plan_next_check(self) -> None:
        """Set the step before which the evictor must be asked again."""
        free = self.evictor.steps_without_eviction(self.cache)
        limit = self.max_new_tokens if free is None else self.fed + free
        self.check_at = min(limit, self.max_new_tokens)


class Steps(Protocol):
    """Decode steps of a batch: each feeds every sequence's token and chooses its next one.

    A sequence that chose a stop token is no longer alive: further steps do not change its cache.
    Sequences are addressed by their index in the batch, from 0 to batch_size - 1.
    """

    def admit(self, index: int, sequence: SequenceState) -> None:
        """Add a sequence, or update one whose cache was changed outside of the steps."""

    def release(self, index: int) -> None:
        """Remove a sequence, also if `admit` failed."""

    def step(self) -> Any:
        """Launch one step of all sequences; returns the event of its end."""

    def ended(self) -> Sequence[int]:
        """Indices of sequences known to have ended, without waiting for the latest steps."""

    def sync(self, index: int) -> tuple[int, bool]:
        """Wait for the steps and record in the cache what was fed.

        Returns:
            Tokens fed so far, and whether the sequence is alive.
        """

    def chosen(self, index: int, count: int) -> tuple[list[int], list[float]]:
        """The first `count` tokens that the steps chose, and their NLL in nats."""

    def record_time(self) -> Any:
        """An event of the present time."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Seconds between two events; waits for the second."""


class Decoder:
    """Decodes a batch step by step, and asks each sequence's evictor when an eviction may be due.

    Evictions happen at the same tokens as in a loop that feeds one token at a time. Whether a
    threshold is reached follows from counting, so the steps between do not wait for the device.
    """

    def __init__(self, steps: Steps, batch_size: int) -> None:
        self.steps = steps
        self._sequences: dict[int, SequenceState] = {}
        self._free = list(range(batch_size))[::-1]
        self._batch_tokens = 0

    def add(self, sequence: SequenceState) -> None:
        """Add a sequence whose first token is chosen and is not a stop token."""
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

    def release_all(self) -> list[SequenceState]:
        """Remove and return all sequences, finished or not."""
        sequences = list(self._sequences.values())
        for index in list(self._sequences):
            self._release(index)
        return sequences

    @torch.inference_mode()
    def decode_until_one_ends(self) -> list[SequenceState]:
        """Launch steps until at least one sequence has ended; returns those that have."""
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
                    if self._evict_or_end(index, sequence):
                        self._finish(index, sequence)
                        done.append(sequence)
                except Exception as error:  # noqa: BLE001 - of its policy: others go on
                    sequence.error = error
                    self._release(index)
                    done.append(sequence)
        return done

    def _evict_or_end(self, index: int, sequence: SequenceState) -> bool:
        """Ask the evictor if its step has come; whether the sequence has ended."""
        fed, alive = self.steps.sync(index)
        if not sequence.fed <= fed <= sequence.launched:
            raise RuntimeError(
                f"the device counts {fed} tokens of a reply that were fed in {sequence.launched} "
                "steps: its memory was overwritten"
            )
        sequence.evictor.step += fed - sequence.fed
        sequence.fed = fed
        if fed < sequence.launched or fed == sequence.max_new_tokens:
            return True
        if sequence.launched == sequence.check_at:
            before, evictor = sequence.cache.slot_table.evictions, sequence.evictor
            measuring_s = evictor.measuring_s
            evictor.before_step(sequence.cache)
            if alive:  # so that a step follows, whose end is after it
                sequence.measuring_s += evictor.measuring_s - measuring_s
            sequence.plan_next_check()
            if alive and sequence.cache.slot_table.evictions != before:
                self.steps.admit(index, sequence)
        return not alive

    def _finish(self, index: int, sequence: SequenceState) -> None:
        # The latest token, a stop token or one past the length, is not part of the reply.
        ids, nll = self.steps.chosen(index, sequence.fed)
        if not all(map(math.isfinite, nll)):
            raise overflow_error(sequence.cache.layers[0].dtype)
        ids, nll = ids[:-1], nll[:-1]
        decode_s = self.steps.seconds(sequence.start_event, sequence.step_events[sequence.fed - 1])
        step_s = (decode_s - sequence.measuring_s) / sequence.fed
        sequences_per_step = (self._batch_tokens - sequence.batch_tokens_before) / sequence.launched
        sequence.reply = Reply(
            ids=(sequence.token, *ids),
            nll=(sequence.nll, *nll),
            finish="length" if sequence.fed == sequence.max_new_tokens else "eos",
            first_s=sequence.first_s,
            step_s=step_s,
            batch_tokens_per_s=sequences_per_step / step_s if step_s else None,
        )
        self._release(index)

    def _release(self, index: int) -> None:
        self.steps.release(index)
        del self._sequences[index]
        self._free.append(index)
