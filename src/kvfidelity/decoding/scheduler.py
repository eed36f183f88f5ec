"""Several runs at once: they feed and decode in one batch.

Each run is ordinary code on a stack of its own (a greenlet), and all share one thread. A run
continues until it needs the model; then the next run continues. When all runs need the model, what
they feed goes through it together. When none has anything to feed, their likelihoods are computed
together. When none has any of these, their replies are decoded together, step by step, until one of
them ends. Each run has its own cache, length, positions, policy and evictions; they share only the
weights.

Threads would do, but a run continues some fifty times, and each waits for its thread to be woken:
on a GPU machine with virtual processors that was 40% of the time.

If a run hits out-of-memory while others share the GPU, that is not its result. When the others have
finished it is restarted, and from then on half as many runs share the GPU.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together
from kvfidelity.decoding.scoring import Scores, Scoring, score_together
from kvfidelity.decoding.sequence import Decoder, Reply, SequenceState
from kvfidelity.decoding.steps import StepsKind, steps_of

T = TypeVar("T")
#: Runs that wait, for instance for a baseline, keep what they hold: at most this many batches.
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
    tasks: list[RunTask[T]] = []
    while len(tasks) < len(runs) or scheduler.running:
        while len(tasks) < len(runs) and not scheduler.full:
            tasks.append(scheduler.start(runs[len(tasks)]))
        scheduler.advance()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.outcome for task in tasks]


@dataclass(eq=False)
class RunTask(Generic[T]):
    """One run and its stack; `outcome` or `error` is set when it has finished.

    concurrency: most runs that were active at once since it restarted the count.
    """

    run: Callable[[Engine], T]
    outcome: Any = None
    error: BaseException | None = None
    concurrency: int = 1
    stack: greenlet | None = None


class BatchScheduler(Generic[T]):
    """Runs several dialogues in one batch (`decoding.engine.Scheduler`); used in one thread.

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
        #: Where requests go: the stack that resumed a run.
        self._caller = getcurrent()
        self._current: RunTask[Any] | None = None
        self._decoders: dict[StepsKind, Decoder] = {}
        self._task_of: dict[int, RunTask[Any]] = {}
        self._feeds: list[tuple[RunTask[Any], Feed]] = []
        self._scorings: list[tuple[RunTask[Any], Scoring]] = []
        self._waiting: list[tuple[RunTask[Any], Callable[[], bool]]] = []
        # Most runs that compute at once: fewer than batch_size after memory ran out.
        self._limit = batch_size
        self._retries: deque[RunTask[Any]] = deque()
        self._start_alone: deque[RunTask[Any]] = deque()
        self._active: list[RunTask[Any]] = []
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

    def start(self, run: Callable[[Engine], T], *, alone: bool = False) -> RunTask[T]:
        """Start a run and let it continue until it needs the model or has finished.

        Args:
            alone: start it only when no other run is active.
        """
        task = RunTask(run)
        if alone:
            self._start_alone.append(task)
        else:
            self._start_task(task)
        return task

    def advance(self) -> None:
        """Feed what runs have to feed, or score, or decode until a reply ends; continue the runs
        that can."""
        if not self._active:
            self._restart()
        for task, condition in list(self._waiting):
            if condition() and self._room():
                self._waiting.remove((task, condition))
                self._note_concurrency()
                self._resume(task, None)
        if self._feeds:
            answers = self._feed_all()
        elif self._scorings:
            answers = self._score_all()
        else:
            answers = self._decode_until_one_ends()
        for task, answer in answers:
            self._resume(task, answer)

    def abandon(self) -> None:
        """Drop the runs that have not ended: their stacks unwind, nothing is decoded for them any
        more, and their caches are freed."""
        for decoder in self._decoders.values():
            decoder.release_all()
        self._decoders.clear()
        self._task_of.clear()
        requests = (self._feeds, self._scorings, self._waiting)
        for waiting in (self._retries, self._start_alone, *requests):
            waiting.clear()
        for task in self._active:
            self._continue(task, RestartError())
            task.stack = None
        self._active.clear()

    def _restart(self) -> None:
        """Start runs that memory ran out for, or one that must be alone."""
        if self._retries:
            self._free_memory()
            number = min(len(self._retries), self._limit)
            self._alone = number == 1
            for _ in range(number):
                self._start_task(self._retries.popleft())
        elif self._start_alone:
            self._alone = True
            self._free_memory()
            self._start_task(self._start_alone.popleft())

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
        self._calling_task.concurrency = self._computing()

    def concurrency(self) -> int:
        return self._calling_task.concurrency

    def wait_until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            self._wait_for(condition)

    def on_out_of_memory(self) -> None:
        if not self._alone:
            raise RestartError
        self._limit = self._batch_size  # it needs more than there is: not the others' fault

    @property
    def _calling_task(self) -> RunTask[Any]:
        assert self._current is not None, "called by a run"
        return self._current

    def _start_task(self, task: RunTask[Any]) -> None:
        task.stack = greenlet(self._run_on_its_stack)
        self._active.append(task)
        self._note_concurrency()
        self._resume(task, task)

    def _computing(self) -> int:
        """Active runs, without those that wait for a condition."""
        return len(self._active) - len(self._waiting)

    def _note_concurrency(self) -> None:
        """Tell each run how many compute: any of them, feeding or not, slows the others."""
        for task in self._active:
            task.concurrency = max(task.concurrency, self._computing())

    def _feed_all(self) -> list[tuple[RunTask[Any], Any]]:
        """Feed; each run with its hidden states, or all with the error of a shared forward."""
        requests, self._feeds = self._feeds, []
        return self._answer(requests, feed_together)

    def _score_all(self) -> list[tuple[RunTask[Any], Any]]:
        """Score; each run with its scores, or all with the error of a shared computation."""
        requests, self._scorings = self._scorings, []
        return self._answer(requests, score_together)

    def _answer(
        self,
        requests: Sequence[tuple[RunTask[Any], Any]],
        compute: Callable[[Engine, Sequence[Any]], Sequence[Any]],
    ) -> list[tuple[RunTask[Any], Any]]:
        answers: Sequence[Any]
        try:
            answers = compute(self._engine, [request for _, request in requests])
        except Exception as error:  # noqa: BLE001 - raised in the runs
            answers = [error] * len(requests)
        return [(task, answer) for (task, _), answer in zip(requests, answers, strict=True)]

    def _decode_until_one_ends(self) -> list[tuple[RunTask[Any], Any]]:
        """Decode; the runs whose replies have ended, each with its reply or error."""
        ended: list[tuple[SequenceState, Any]] = []
        for key, decoder in list(self._decoders.items()):
            try:
                for sequence in decoder.decode_until_one_ends():
                    ended.append((sequence, sequence.error or sequence.reply))
            except Exception as error:  # noqa: BLE001 - raised in the runs
                ended += [(sequence, error) for sequence in self._decoders.pop(key).release_all()]
        return [(self._task_of.pop(id(sequence)), answer) for sequence, answer in ended]

    def _resume(self, task: RunTask[Any], answer: Any) -> None:
        """Continue one run until its next request or its end."""
        request = self._continue(task, answer)
        while isinstance(request, SequenceState):
            try:
                self._decoder_for(request).add(request)
            except Exception as error:  # noqa: BLE001 - raised in the run
                request = self._continue(task, error)
            else:
                self._task_of[id(request)] = task
                return
        if isinstance(request, Feed):
            self._feeds.append((task, request))
        elif isinstance(request, Scoring):
            self._scorings.append((task, request))
        elif request is not None:
            self._waiting.append((task, request))
        else:
            task.stack = None
            self._active.remove(task)
            self._alone = self._alone and bool(self._active)
            if isinstance(task.error, RestartError):
                task.error = None
                self._shrink()
                self._retries.append(task)

    def _continue(self, task: RunTask[Any], answer: Any) -> Any:
        """Answer a run's request; its next one, None at its end."""
        assert task.stack is not None, "it has started and not ended"
        caller, current = self._caller, self._current
        self._caller, self._current = getcurrent(), task
        try:
            return _switch_to(task.stack, answer)
        finally:
            self._caller, self._current = caller, current

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

    def _run_on_its_stack(self, task: RunTask[Any]) -> None:
        try:
            task.outcome = task.run(self._engine)
        except RestartError:
            task.error = RestartError()  # a new one: the old one's frames hold the caches
        except (KeyboardInterrupt, SystemExit):
            raise  # of the process, in whichever run it happens to be
        except BaseException as error:  # noqa: BLE001 - raised by the caller of `start`
            task.error = error

    def _wait_for(self, request: Any) -> Any:
        """On a run's stack: send a request and continue when it is answered."""
        answer = _switch_to(self._caller, request)
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # its traceback holds this frame, and with it what the run holds
        return answer


def _switch_to(stack: greenlet, value: Any) -> Any:
    """Continue another stack with a value; returns what this one is continued with.

    PyTorch's modes are the thread's. Each stack is left in the usual ones, and finds its own again.
    """
    with torch.inference_mode(mode=False):
        return stack.switch(value)
