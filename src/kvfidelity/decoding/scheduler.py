"""Several runs at once: they feed and decode in one batch.

Each run is ordinary code in its own thread, and only one thread runs at a time. A run continues
until it needs the model; then the next run continues. When all runs need the model, what they feed
goes through it together. When none has anything to feed, their likelihoods are computed together.
When none has any of these, their replies are decoded together, step by step, until one of them
ends. Each run has its own cache, length, positions, policy and evictions; they share only the
weights.

If a run hits out-of-memory while others share the GPU, that is not its result. When the others have
finished it is restarted, and from then on half as many runs share the GPU.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together
from kvfidelity.decoding.scoring import Scores, Scoring, score_together
from kvfidelity.decoding.sequence import Decoder, Reply, SequenceState
from kvfidelity.decoding.steps import StepsKind, steps_of

T = TypeVar("T")
#: Runs that wait, for instance for a baseline, keep their threads: at most so many batches of them.
MOST_WAITING = 4


class RestartError(Exception):
    """Memory ran out while other runs were active. Do not catch this: the run is restarted."""


def run_batch(engine: Engine, runs: Sequence[Callable[[Engine], T]], batch_size: int) -> list[T]:
    """Call each of `runs` with an engine that feeds and decodes in a shared batch.

    Args:
        batch_size: most runs active at the same time.

    Returns:
        Their results, in order.

    Raises:
        Exception: the first one that a run raised, after all runs have finished.
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
    """One run and its thread; `outcome` or `error` is set when it has finished.

    inbox: the answers to its requests; an exception is raised in the run.
    concurrency: most runs that were active at once since it restarted the count.
    """

    run: Callable[[Engine], T]
    outcome: Any = None
    error: BaseException | None = None
    inbox: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    concurrency: int = 1


class BatchScheduler(Generic[T]):
    """Runs several dialogues in one batch (`decoding.engine.Scheduler`).

    Args:
        batch_size: most runs active at the same time, as long as memory does not run out.
        free_memory: called before runs are restarted because memory ran out.
    """

    def __init__(
        self,
        engine: Engine,
        batch_size: int,
        free_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = replace(engine, scheduler=self)
        self._batch_size = batch_size
        self._free_memory = free_memory
        self._thread_local = threading.local()
        self._requests: SimpleQueue[tuple[RunThread[Any], Any]] = SimpleQueue()
        self._decoders: dict[StepsKind, Decoder] = {}
        self._thread_of: dict[int, RunThread[Any]] = {}
        self._feeds: list[tuple[RunThread[Any], Feed]] = []
        self._scorings: list[tuple[RunThread[Any], Scoring]] = []
        self._waiting: list[tuple[RunThread[Any], Callable[[], bool]]] = []
        # Most runs that compute at once: fewer than batch_size after memory ran out.
        self._limit = batch_size
        self._retries: deque[RunThread[Any]] = deque()
        self._start_alone: deque[RunThread[Any]] = deque()
        self._active: list[RunThread[Any]] = []
        self._alone = False

    @property
    def running(self) -> int:
        """Number of runs that have started and not finished."""
        return len(self._active) + len(self._retries) + len(self._start_alone)

    @property
    def full(self) -> bool:
        """Whether no further run can start now."""
        crowded = len(self._active) >= MOST_WAITING * self._batch_size
        restarting = bool(self._retries or self._start_alone)
        return self._alone or crowded or not self._room() or restarting

    def _room(self) -> bool:
        """Whether one more run may compute; those that wait for a condition do not count."""
        return self._computing() < (1 if self._alone else self._limit)

    def start(self, run: Callable[[Engine], T], *, alone: bool = False) -> RunThread[T]:
        """Start a run and let it continue until it needs the model or has finished.

        Args:
            alone: start it only when no other run is active.
        """
        thread = RunThread(run)
        if alone:
            self._start_alone.append(thread)
        else:
            self._start_thread(thread)
        return thread

    def advance(self) -> None:
        """Feed what runs have to feed, or score, or decode until a reply ends; continue the runs
        that can."""
        if not self._active:
            self._restart()
        for thread, condition in list(self._waiting):
            if condition() and self._room():
                self._waiting.remove((thread, condition))
                self._note_concurrency()
                self._resume(thread, None)
        if self._feeds:
            answers = self._feed_all()
        elif self._scorings:
            answers = self._score_all()
        else:
            answers = self._decode_until_one_ends()
        for thread, answer in answers:
            self._resume(thread, answer)

    def _restart(self) -> None:
        """Start runs that memory ran out for, or one that must be alone."""
        if self._retries:
            self._free_memory()
            number = min(len(self._retries), self._limit)
            self._alone = number == 1
            for _ in range(number):
                self._start_thread(self._retries.popleft())
        elif self._start_alone:
            self._alone = True
            self._free_memory()
            self._start_thread(self._start_alone.popleft())

    def feed(self, feed: Feed) -> Tensor:
        hidden: Tensor = self._wait_for(feed)
        return hidden

    def score(self, request: Scoring) -> Scores:
        scores: Scores = self._wait_for(request)
        return scores

    def decode(self, sequence: SequenceState) -> Reply:
        reply: Reply = self._wait_for(sequence)
        return reply

    def restart_count(self) -> None:
        self._calling_thread.concurrency = self._computing()

    def concurrency(self) -> int:
        return self._calling_thread.concurrency

    def wait_until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            self._wait_for(condition)

    def on_out_of_memory(self) -> None:
        if not self._alone:
            raise RestartError
        self._limit = self._batch_size  # it needs more than there is: not the others' fault

    @property
    def _calling_thread(self) -> RunThread[Any]:
        thread: RunThread[Any] = self._thread_local.run_thread
        return thread

    def _start_thread(self, thread: RunThread[Any]) -> None:
        threading.Thread(target=self._run_in_thread, args=(thread,), daemon=True).start()
        self._active.append(thread)
        self._note_concurrency()
        self._resume(thread, None)

    def _computing(self) -> int:
        """Active runs, without those that wait for a condition."""
        return len(self._active) - len(self._waiting)

    def _note_concurrency(self) -> None:
        """Tell each run how many compute: any of them, feeding or not, slows the others."""
        for thread in self._active:
            thread.concurrency = max(thread.concurrency, self._computing())

    def _feed_all(self) -> list[tuple[RunThread[Any], Any]]:
        """Feed; each run with its hidden states, or all with the error of a shared forward."""
        requests, self._feeds = self._feeds, []
        return self._answer(requests, feed_together)

    def _score_all(self) -> list[tuple[RunThread[Any], Any]]:
        """Score; each run with its scores, or all with the error of a shared computation."""
        requests, self._scorings = self._scorings, []
        return self._answer(requests, score_together)

    def _answer(
        self,
        requests: Sequence[tuple[RunThread[Any], Any]],
        compute: Callable[[Engine, Sequence[Any]], Sequence[Any]],
    ) -> list[tuple[RunThread[Any], Any]]:
        answers: Sequence[Any]
        try:
            answers = compute(self._engine, [request for _, request in requests])
        except Exception as error:  # noqa: BLE001 - raised in the runs
            answers = [error] * len(requests)
        return [(thread, answer) for (thread, _), answer in zip(requests, answers, strict=True)]

    def _decode_until_one_ends(self) -> list[tuple[RunThread[Any], Any]]:
        """Decode; the runs whose replies have ended, each with its reply or error."""
        ended: list[tuple[SequenceState, Any]] = []
        for key, decoder in list(self._decoders.items()):
            try:
                for sequence in decoder.decode_until_one_ends():
                    ended.append((sequence, sequence.error or sequence.reply))
            except Exception as error:  # noqa: BLE001 - raised in the runs
                ended += [(sequence, error) for sequence in self._decoders.pop(key).release_all()]
        return [(self._thread_of.pop(id(sequence)), answer) for sequence, answer in ended]

    def _resume(self, thread: RunThread[Any], answer: Any) -> None:
        """Continue one run until its next request or its end."""
        thread.inbox.put(answer)
        thread, request = self._requests.get()
        if isinstance(request, SequenceState):
            try:
                self._decoder_for(request).add(request)
            except Exception as error:  # noqa: BLE001 - raised in the run
                self._resume(thread, error)
                return
            self._thread_of[id(request)] = thread
        elif isinstance(request, Feed):
            self._feeds.append((thread, request))
        elif isinstance(request, Scoring):
            self._scorings.append((thread, request))
        elif request is not None:
            self._waiting.append((thread, request))
        else:
            self._active.remove(thread)
            self._alone = self._alone and bool(self._active)
            if isinstance(thread.error, RestartError):
                thread.error = None
                self._shrink()
                self._retries.append(thread)

    def _shrink(self) -> None:
        """Let half as many runs share the memory; once for all that failed together."""
        if not self._retries:
            self._limit = max(1, self._limit // 2)
            print(
                f"memory ran out with several runs at once: from now on at most {self._limit}",
                file=sys.stderr,
                flush=True,
            )

    def _decoder_for(self, sequence: SequenceState) -> Decoder:
        kind = StepsKind.of(sequence)
        if kind not in self._decoders:
            steps = steps_of(self._engine, self._batch_size, kind)
            self._decoders[kind] = Decoder(steps, self._batch_size)
        return self._decoders[kind]

    def _run_in_thread(self, thread: RunThread[Any]) -> None:
        self._thread_local.run_thread = thread
        thread.inbox.get()
        try:
            if self._engine.device.type == "cuda":
                torch.cuda.set_device(self._engine.device)  # a setting of each thread
            thread.outcome = thread.run(self._engine)
        except RestartError:
            thread.error = RestartError()  # a new one: the old one's frames hold the caches
        except BaseException as error:  # noqa: BLE001 - raised by the caller of `start`
            thread.error = error
        self._requests.put((thread, None))

    def _wait_for(self, request: Any) -> Any:
        """In a run's thread: send a request and block until it is answered."""
        thread = self._calling_thread
        self._requests.put((thread, request))
        answer = thread.inbox.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer
