"""Sends requests one by one, several in flight."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import openai

from kvfidelity.errors import UserError
from kvfidelity.judges.endpoint import Endpoint, completion_fields, retry_after
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome, Request
from kvfidelity.judges.store import AnswerStore, CapReachedError

POLL_S = 0.02
#: Further tries after a rate limit that outlasted the client's own retries. The wait is what
#: `retry-after` says, at most an hour, or else a minute.
RATE_LIMIT_RETRIES, WAIT_S, MAX_WAIT_S = 10, 60.0, 3600.0


class OnlineClient:
    """Asks a chat-completions endpoint, and stores each answer at once.

    Args:
        connect: returns the endpoint; called only if an answer is missing.
        store: holds earlier answers and keeps new ones.
        limits: prices, cap and speed.
    """

    def __init__(self, connect: Callable[[], Endpoint], store: AnswerStore, limits: Limits) -> None:
        self._connect, self._store, self._limits = connect, store, limits
        self._stopped = threading.Event()

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """Outcomes in order; equal requests are sent once. See `Client`."""
        unique = {request.key: request for request in requests}
        kept = {key: self._store.get(key) for key in unique}
        outcomes: dict[str, Outcome] = {k: o for k, o in kept.items() if isinstance(o, Answer)}
        missing = [request for key, request in unique.items() if key not in outcomes]
        if missing:
            outcomes |= self._answers(self._connect(), missing)
        return [outcomes[request.key] for request in requests]

    def _answers(self, endpoint: Endpoint, requests: list[Request]) -> dict[str, Outcome]:
        with ThreadPoolExecutor(self._limits.concurrency) as pool:
            jobs = {r.key: pool.submit(self._answer, endpoint, r) for r in requests}
        errors = [error for job in jobs.values() if (error := job.exception()) is not None]
        for error in errors:
            if not isinstance(error, _StoppedError):
                raise self._user_error(error, endpoint, requests)
        return {key: job.result() for key, job in jobs.items()}

    def _answer(self, endpoint: Endpoint, request: Request) -> Outcome:
        try:
            # If another job sends the same request now, wait for its answer.
            with self._store.locks.hold(request.key), self._concurrency_slot(endpoint.judge):
                found = self._store.get(request.key)
                return found if isinstance(found, Answer) else self._send(endpoint, request)
        except BaseException:
            self._stopped.set()  # other threads finish their request and start no other
            raise

    def _send(self, endpoint: Endpoint, request: Request) -> Outcome:
        price = self._limits.price
        tokens = (request.prompt_tokens, request.answer_tokens)
        max_usd = price.usd(*tokens) if price else 0.0
        call = self._store.start_call(
            endpoint.judge, endpoint.model, sum(tokens), max_usd, self._limits
        )
        try:
            completion = _complete_with_retries(endpoint, request)
            answer = endpoint.answer(completion_fields(completion), price.usd if price else None)
        except (openai.OpenAIError, ValueError) as error:
            self._store.end_call(call)
            if fatal := endpoint.fatal_error(error):
                raise fatal from None
            return Failure(endpoint.reason(error))
        self._store.put(request.key, answer, endpoint.judge, endpoint.model, call)
        return answer

    @contextlib.contextmanager
    def _concurrency_slot(self, judge: str) -> Iterator[None]:
        """Hold one of the `concurrency` slots, which all processes share."""
        names = [f"{judge} {n}" for n in range(self._limits.concurrency)]
        while True:
            if self._stopped.is_set():
                raise _StoppedError
            for name in names:
                if self._store.locks.acquire(name, wait=False):
                    try:
                        yield
                    finally:
                        self._store.locks.release(name)
                    return
            time.sleep(POLL_S)

    def _user_error(
        self, error: BaseException, endpoint: Endpoint, requests: list[Request]
    ) -> BaseException:
        if not isinstance(error, CapReachedError):
            return error
        kept = len(requests) - len(self._store.missing([request.key for request in requests]))
        return UserError(
            f"judge {endpoint.judge}: {error.spent:.4f} dollars are spent and the next "
            f"verdict could go beyond `max_usd: {self._limits.max_usd}`; {kept} of "
            f"{len(requests)} answers of this job are kept: raise it and run again to continue"
        )


def _complete_with_retries(endpoint: Endpoint, request: Request) -> object:
    """The completion; waits as long as a rate limit holds."""
    for retries_left in reversed(range(RATE_LIMIT_RETRIES)):
        try:
            return endpoint.client.chat.completions.create(**request.body)
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota" or not retries_left:
                raise
            wait = min(retry_after(error) or WAIT_S, MAX_WAIT_S)
        print(f"judge {endpoint.judge}: rate limit, waiting {wait:.0f} s", file=sys.stderr)
        time.sleep(wait)
    raise AssertionError("the last round returns or raises")


class _StoppedError(Exception):
    """Another request failed in a way that would fail every request."""
