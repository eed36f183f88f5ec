"""Sends requests one by one, several in flight."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvfidelity.errors import UserError
from kvfidelity.judges import endpoint as endpoint_module
from kvfidelity.judges.endpoint import Endpoint, Trouble
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome, Request
from kvfidelity.judges.store import AnswerStore, CapReachedError

POLL_S = 0.02
#: Pauses before further tries grow from the first to the last. An endpoint that limits its rate is
#: asked ten times more, after as long as it says, at most an hour, or else a minute.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 8.0
RATE_LIMIT_RETRIES, WAIT_S, MAX_WAIT_S = 10, 60.0, 3600.0
#: Further tries of a request that was lost: each of them may be charged.
LOST_RETRIES = 2
#: As long as nothing was answered, so many failures of one kind, or of any, stop a job.
SAME_FAILURES, MOST_FAILURES = 3, 6
#: What differs between reasons of one kind: identifiers, times and counts, but not the status.
VARYING = re.compile(
    r"\b(?:request|trace|correlation|ray)[ _-]?id\W{1,4}[\w.-]+"
    r"|(?<!status )(?<![\w.:-])(?=[\w.:-]*\d)[\w.:-]+",
    re.IGNORECASE,
)


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
            earlier = len(self._store.stops())
            outcomes |= self._answers(self._connect(), missing, earlier)
        return [outcomes[request.key] for request in requests]

    def _answers(
        self, endpoint: Endpoint, requests: list[Request], earlier: int
    ) -> dict[str, Outcome]:
        try:
            found = self._first_answers(endpoint, requests, earlier)
            with ThreadPoolExecutor(self._limits.concurrency) as pool:
                jobs = {
                    request.key: pool.submit(self._answer, endpoint, request)
                    for request in requests
                    if request.key not in found
                }
            errors = [error for job in jobs.values() if (error := job.exception()) is not None]
            for error in errors:
                if not isinstance(error, _StoppedError):
                    raise error
        except CapReachedError as error:
            raise self._cap_error(error, endpoint, requests) from None
        return found | {key: job.result() for key, job in jobs.items()}

    def _first_answers(
        self, endpoint: Endpoint, requests: list[Request], earlier: int
    ) -> dict[str, Outcome]:
        """Outcomes of requests that are sent alone, until one of them is answered.

        An answer that cannot be read at all does not count. So what every request would meet is
        met once, by the first job. Others of the judge wait for it, unless the model answered
        lately, and stop with what stopped it.

        Args:
            earlier: stops that were recorded before this job asked.
        """
        asked = f"{endpoint.judge} {endpoint.model} {endpoint.name}"
        if self._store.answered_lately(endpoint.model):
            return self._alone(endpoint, requests)
        with self._store.locks.hold(f"first of {asked}"):
            for other, why in self._store.stops()[earlier:]:
                if other == asked:
                    raise UserError(why)
            try:
                return self._alone(endpoint, requests)
            except UserError as error:
                self._store.note_stop(asked, str(error))
                raise

    def _alone(self, endpoint: Endpoint, requests: list[Request]) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        reasons: list[str] = []
        for request in requests:
            outcome = found[request.key] = self._answer(endpoint, request)
            reason = outcome.problem if isinstance(outcome, Answer) else outcome.reason
            if reason is None:
                break
            reasons.append(reason)
            kinds = [VARYING.sub("#", one) for one in reasons[-SAME_FAILURES:]]
            same = len(kinds) == SAME_FAILURES and len(set(kinds)) == 1
            if same or len(reasons) == MOST_FAILURES:
                got = "got this" if same else "failed, the last of them with this,"
                raise UserError(
                    f"judge {endpoint.judge}: {endpoint.url or 'the endpoint'}: {reason}: "
                    f"{len(reasons)} requests {got} and none was answered; correct the "
                    "judge's entry, or run again later"
                )
        return found

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
        """Send a request until it is answered; each try is a call of its own, and counts."""
        price, judge = self._limits.price, endpoint.judge
        tokens = (request.prompt_tokens, request.answer_tokens)
        max_usd = price.usd(*tokens) if price else 0.0
        pauses = _Pauses(judge)
        while True:
            self._store.make_room(judge, self._limits.concurrency)
            call = self._store.start_call(
                judge, endpoint.model, sum(tokens), max_usd, self._limits, request.key
            )
            found = endpoint.ask(request, price.usd if price else None)
            if isinstance(found, Answer):
                self._store.put(request.key, found, judge, endpoint.model, call, max_usd)
                kept = self._store.get(request.key)
                assert kept is not None
                return kept
            if not found.lost:
                self._store.end_call(call)
            if not pauses.wait(found):
                if found.fatal:
                    raise found.fatal
                return Failure(found.reason, self._store.possible_usd(request.key))

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

    def _cap_error(
        self, error: CapReachedError, endpoint: Endpoint, requests: list[Request]
    ) -> UserError:
        kept = len(requests) - len(self._store.missing([request.key for request in requests]))
        return UserError(
            f"judge {endpoint.judge}: {error.spent:.4f} dollars are spent, or may be, and the next "
            f"verdict could go beyond `max_usd: {self._limits.max_usd}`; {kept} of "
            f"{len(requests)} answers of this job are kept: raise it and run again to continue"
        )


class _Pauses:
    """How long to wait before each further try of one request, and how many there are."""

    def __init__(self, judge: str) -> None:
        self._judge = judge
        self._tries = self._lost = self._limited = 0

    def wait(self, trouble: Trouble) -> bool:
        """Wait for the next try; False if there is none."""
        if not trouble.passing:
            return False
        self._tries += 1
        self._lost += trouble.lost
        if self._lost > LOST_RETRIES:
            return False
        pause = min(FIRST_PAUSE_S * 2 ** (self._tries - 1), LAST_PAUSE_S)
        told = trouble.retry_after
        if trouble.limited and (self._tries > endpoint_module.RETRIES or (told or 0) > WAIT_S):
            self._limited += 1
            if self._limited >= RATE_LIMIT_RETRIES:
                raise _persisting_limit(self._judge, trouble)
            pause = min(told or WAIT_S, MAX_WAIT_S)
            print(f"judge {self._judge}: rate limit, waiting {pause:.0f} s", file=sys.stderr)
        elif self._tries > endpoint_module.RETRIES:
            return False
        elif told is not None:
            pause = min(told, WAIT_S)
        time.sleep(pause)
        return True


def _persisting_limit(judge: str, trouble: Trouble) -> UserError:
    return UserError(
        f"judge {judge}: {trouble.reason}: its rate limit persists; lower `concurrency`, or set "
        "`tokens_per_minute`"
    )


class _StoppedError(Exception):
    """Another request failed in a way that would fail every request."""
