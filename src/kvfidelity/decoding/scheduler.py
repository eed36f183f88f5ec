"""Several runs at once: their replies are decoded in one batch.

Each run is ordinary code in a thread of its own, and one thread runs at a time: a run goes on until
it wants a reply, then the others do, and when all want one their replies are made together, step
by step. A run whose reply has ended feeds its next prompt and joins again. Each has its own cache,
length, positions, policy and evictions; only the weights are read together.

Memory that runs out while others hold some of it says nothing about a run: it is begun anew once
they have come to their end, alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sequence import Decoder, Reply, SequenceState
from kvfidelity.decoding.steps import capacity_for, steps_of

T = TypeVar("T")


class RetryAloneError(Exception):
    """Memory ran out for a run that was not alone; it is begun anew, so let this pass."""


def run_batch(engine: Engine, runs: Sequence[Callable[[Engine], T]], batch_size: int) -> list[T]:
    """Run each of `runs` with an engine that decodes with the others', at most `lanes` at a time.

    Returns:
        What they returned, in order.

    Raises:
        Exception: the first that a run raised, after the others have come to their end.
    """
    scheduler: BatchScheduler[T] = BatchScheduler(engine, batch_size)
    threads: list[RunThread[T]] = []
    while len(threads) < len(runs) or scheduler.running:
        while len(threads) < len(runs) and not scheduler.full:
            threads.append(scheduler.start(runs[len(threads)]))
        scheduler.advance()
    for thread in threads:
        if thread.error is not None:
            raise thread.error
    return [thread.outcome for thread in threads]


@dataclass(eq=False)
class RunThread(Generic[T]):
    """One run among others: what it returned or raised, once it has come to its end."""

    run: Callable[[Engine], T]
    outcome: Any = None
    error: BaseException | None = None
    inbox: SimpleQueue[Any] = field(default_factory=SimpleQueue)


class BatchScheduler(Generic[T]):
    """Runs in the making, and the hub that their engines decode through
    (`decoding.engine.Scheduler`).

    Args:
        lanes: how many runs go on at a time.
        before_alone: called before a run is begun anew for want of memory: let go of what can be.
    """

    def __init__(
        self, engine: Engine, batch_size: int, free_memory: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = replace(engine, scheduler=self)
        self._batch_size = batch_size
        self._free_memory = free_memory
        self._thread_local = threading.local()
        self._requests: SimpleQueue[tuple[RunThread[Any], Any]] = SimpleQueue()
        self._decoders: dict[tuple[bool, int], Decoder] = {}
        self._thread_of: dict[int, RunThread[Any]] = {}
        self._waiting: list[tuple[RunThread[Any], Callable[[], bool]]] = []
        self._retry_alone: deque[RunThread[Any]] = deque()
        self._active = 0
        self._alone = False

    @property
    def running(self) -> int:
        """Runs that have begun and not come to their end."""
        return self._active + len(self._retry_alone)

    @property
    def full(self) -> bool:
        """Whether no run can begin now."""
        limit = 1 if self._alone else self._batch_size
        return self._active >= limit or bool(self._retry_alone)

    def start(self, run: Callable[[Engine], T], *, alone: bool = False) -> RunThread[T]:
        """Begin a run; it goes on until it wants a reply or has come to its end.

        Args:
            alone: begin it once no other is under way.
        """
        thread = RunThread(run)
        if alone:
            self._retry_alone.append(thread)
        else:
            self._start_thread(thread)
        return thread

    def advance(self) -> None:
        """Make replies until at least one has ended, and let runs go on that can."""
        if self._retry_alone and not self._active:
            self._alone = True
            self._free_memory()
            self._start_thread(self._retry_alone.popleft())
        for thread, condition in list(self._waiting):
            if condition():
                self._waiting.remove((thread, condition))
                self._resume(thread, None)
        for sequence, answer in self._finished_sequences():
            self._resume(self._thread_of.pop(id(sequence)), answer)

    def decode(self, sequence: SequenceState) -> Reply:
        reply: Reply = self._wait_for(sequence)
        return reply

    def wait_until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            self._wait_for(condition)

    def on_out_of_memory(self) -> None:
        if not self._alone:
            raise RetryAloneError

    def _start_thread(self, thread: RunThread[Any]) -> None:
        threading.Thread(target=self._run_in_thread, args=(thread,), daemon=True).start()
        self._active += 1
        self._note_concurrency()
        self._resume(thread, None)

    def _finished_sequences(self) -> list[tuple[SequenceState, Any]]:
        """Lanes that have ended, with their reply or what went wrong for all of them."""
        ended: list[tuple[SequenceState, Any]] = []
        for key, decoder in list(self._decoders.items()):
            try:
                ended += [
                    (sequence, sequence.error or sequence.reply) for sequence in decoder.run()
                ]
            except Exception as error:  # noqa: BLE001 - it belongs to the runs, which handle it
                ended += [(sequence, error) for sequence in self._decoders.pop(key).release_all()]
        return ended

    def _resume(self, thread: RunThread[Any], answer: Any) -> None:
        """Let one run go on until it wants something or has come to its end."""
        thread.inbox.put(answer)
        thread, request = self._requests.get()
        if isinstance(request, SequenceState):
            try:
                self._decoder_for(request).add(request)
            except Exception as error:  # noqa: BLE001 - it belongs to the run, which handles it
                self._resume(thread, error)
                return
            self._thread_of[id(request)] = thread
            self._note_concurrency()
        elif request is not None:
            self._waiting.append((thread, request))
        else:
            self._active -= 1
            self._alone = self._alone and self._active > 0
            if isinstance(thread.error, RetryAloneError):
                thread.error = None
                self._retry_alone.append(thread)

    def _note_concurrency(self) -> None:
        """A reply's time is its own only if no other run went on meanwhile, decoding or not."""
        for decoder in self._decoders.values():
            decoder.note_concurrency(self._active)

    def _decoder_for(self, sequence: SequenceState) -> Decoder:
        key = (sequence.sampling.greedy, capacity_for(sequence.max_new_tokens))
        if key not in self._decoders:
            steps = steps_of(
                self._engine, self._batch_size, sequence.sampling, sequence.max_new_tokens
            )
            self._decoders[key] = Decoder(steps, self._batch_size)
        return self._decoders[key]

    def _run_in_thread(self, thread: RunThread[Any]) -> None:
        self._thread_local.player = thread
        thread.inbox.get()
        if self._engine.device.type == "cuda":
            torch.cuda.set_device(self._engine.device)  # which is each thread's own to say
        try:
            thread.outcome = thread.run(self._engine)
        except RetryAloneError:
            thread.error = RetryAloneError()  # a fresh one: this one's frames hold the run's caches
        except BaseException as error:  # noqa: BLE001 - whoever began the run handles it
            thread.error = error
        self._requests.put((thread, None))

    def _wait_for(self, request: Any) -> Any:
        """In a run's thread: say what it wants and wait for it."""
        thread: RunThread[Any] = self._thread_local.player
        self._requests.put((thread, request))
        answer = thread.inbox.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer
