"""Requests sent together through the Batch API: slower, and at a lower price.

A batch is recorded before it is sent, and sent with one request that is never repeated. If its id
is not known then, because the connection broke or the process was killed, the batch is looked up by
the name in its metadata and by its file, several times: an endpoint may list a batch later than it
takes it. Only what is not found is sent again. Nothing is sent twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import openai

from kvfidelity.errors import UserError
from kvfidelity.judges.batch_api import (
    FINISHED,
    BatchState,
    UnreadableError,
    batch_state,
    create_batch,
    file_content,
    find_batch,
    upload_file,
)
from kvfidelity.judges.batch_lines import Line, Lines
from kvfidelity.judges.completion import refused_by_filter
from kvfidelity.judges.endpoint import Endpoint
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome, Request
from kvfidelity.judges.store import AnswerStore, Batch, CapReachedError

#: Limits of one batch.
MAX_REQUESTS, MAX_BYTES = 50_000, 180_000_000
#: Looks at the list for a batch whose id is not known, `poll_s` apart, until it counts as not sent.
LOOKS = 3
#: A batch ends within a day; a run waits for one no longer than this.
MOST_WAIT_S = 2 * 86_400.0


class BatchClient:
    """Sends requests through the Batch API, and waits.

    Args:
        connect: returns the endpoint; called only if an answer is missing.
        store: holds earlier answers and keeps new ones.
        limits: prices, cap, and how often to look.
    """

    def __init__(self, connect: Callable[[], Endpoint], store: AnswerStore, limits: Limits) -> None:
        self._connect, self._store, self._limits = connect, store, limits

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """Outcomes in order; equal requests are sent once. See `Client`."""
        unique = {request.key: request for request in requests}
        if self._store.missing(list(unique)):
            endpoint = self._connect()
            with self._store.locks.hold(f"batches of {endpoint.judge}"):
                try:
                    self._finish_open(endpoint)
                    missing = self._store.missing(list(unique))
                    self._send(endpoint, [unique[key] for key in missing])
                    self._finish_open(endpoint)
                except (openai.OpenAIError, UnreadableError) as error:
                    raise self._user_error(endpoint, error) from None
        outcomes = {key: self._store.get(key) for key in unique}
        unanswered = Failure("the batch gave neither answer nor error")
        return [outcomes[request.key] or unanswered for request in requests]

    def _send(self, endpoint: Endpoint, requests: Sequence[Request]) -> None:
        for part in _parts(requests):
            prices = tuple(self._price(request) for request in part)
            limits = replace(self._limits, tokens_per_minute=None)
            self._store.make_room(endpoint.judge, 1)  # answers can be fetched again
            try:
                call = self._store.start_call(
                    endpoint.judge, endpoint.model, 0, sum(prices), limits
                )
            except CapReachedError as error:
                self._finish_open(endpoint)
                raise UserError(
                    f"judge {endpoint.judge}: {error.spent:.4f} dollars are spent, or may be, and "
                    f"a batch of {len(part)} requests could cost {sum(prices):.4f} more, beyond "
                    f"`max_usd: {self._limits.max_usd}`: raise it and run again to continue"
                ) from None
            keys = tuple(request.key for request in part)
            batch = Batch(
                uuid.uuid4().hex,
                endpoint.judge,
                endpoint.model,
                keys,
                call,
                at=time.time(),
                usd=prices,
                endpoint=endpoint.name,
            )
            self._store.note_batch(batch)
            batch = replace(batch, file=self._upload(endpoint, batch, part))
            self._store.note_batch(batch)
            found = self._create(endpoint, batch)
            self._store.note_batch(replace(batch, id=found))

    def _upload(self, endpoint: Endpoint, batch: Batch, part: Sequence[Request]) -> str:
        path = endpoint.batch_path
        lines = [{"custom_id": r.key, "method": "POST", "url": path, "body": r.body} for r in part]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return upload_file(endpoint.exchanges, f"{batch.name}.jsonl", text.encode())

    def _create(self, endpoint: Endpoint, batch: Batch) -> str:
        """The id of the batch; the request that creates it is never repeated.

        Raises:
            openai.OpenAIError: it is not created, or nobody knows.
        """
        error: Exception
        try:
            path, file = endpoint.batch_path, str(batch.file)
            return create_batch(endpoint.exchanges, path, batch.name, file)
        except openai.APIStatusError as refused:
            if refused.status_code < 500 and refused.status_code != 408:
                self._end(batch)  # refused: there is no such batch
                raise
            error = refused
        except (openai.APIConnectionError, UnreadableError) as broken:
            error = broken
        known = self._look_up(endpoint, batch)
        if known is None:
            raise UserError(
                f"judge {endpoint.judge}: {endpoint.reason(error)}: the endpoint does not list the "
                "batch that was sent; run again to look for it and to send what was not taken"
            )
        return known

    def _look_up(self, endpoint: Endpoint, batch: Batch) -> str | None:
        """The id of a batch by its name; None if the endpoint does not list it after some time.

        Raises:
            UserError: the endpoint's list does not tell.
        """
        problem: Exception | None = None
        for look in range(LOOKS):
            if look:
                time.sleep(self._limits.poll_s)
            try:
                if found := find_batch(endpoint.exchanges, batch.name, batch.file):
                    return found
            except UnreadableError as error:
                problem = error
        if problem is not None:
            raise UserError(
                f"judge {endpoint.judge}: {endpoint.url or 'the endpoint'}: a batch was sent, and "
                f"whether it was taken is not known: {problem}; run again to look for it, or set "
                "`batch: false` to ask one by one"
            )
        return None

    def _finish_open(self, endpoint: Endpoint) -> None:
        """Wait for every batch that was sent, and keep its answers."""
        for batch in self._store.open_batches(endpoint.judge, endpoint.name):
            found = batch.id or self._look_up(endpoint, batch)
            if found is None:  # never sent
                self._end(batch)
                continue
            self._store_lines(endpoint, batch, found)

    def _wait(self, endpoint: Endpoint, batch: Batch, found: str) -> BatchState:
        """The state of a batch, once it ended.

        Raises:
            UserError: it failed, or does not end.
            UnreadableError: what the endpoint says of it cannot be read, several times in a row.
        """
        unreadable = 0
        begun = time.monotonic()
        while True:
            if time.monotonic() - begun > MOST_WAIT_S:
                raise UserError(
                    f"judge {endpoint.judge}: {endpoint.url or 'the endpoint'}: a batch did not "
                    "end within two days; run again to wait longer, or set `batch: false`"
                )
            try:
                state = batch_state(endpoint.exchanges, found)
                unreadable = 0
                if state.status in FINISHED:
                    break
            except UnreadableError:
                unreadable += 1
                if unreadable == LOOKS:
                    raise
            time.sleep(self._limits.poll_s)
        if state.status == "failed":
            self._end(batch)
            raise UserError(
                f"judge {endpoint.judge}: the endpoint refused a batch: "
                f"{endpoint.without_key(state.problems)[:300]}; correct the judge's entry, or set "
                "`batch: false`"
            )
        return state

    def _fetch(
        self, endpoint: Endpoint, batch: Batch, found: str
    ) -> tuple[BatchState, Lines, bool]:
        """The state and the lines of a batch that ended, and whether answers are lacking.

        An endpoint may name the files, or fill them, later than it ends the batch, and a download
        may break off: if answers that were paid for are lacking, it is asked several times.

        Raises:
            UserError: the batch failed, or all answers are lacking; they may still be fetched.
        """
        for look in range(LOOKS):
            if look:
                time.sleep(self._limits.poll_s)
            state = self._wait(endpoint, batch, found)
            lines = Lines()
            for file in state.files:
                lines.add(file_content(endpoint.exchanges, file), batch.keys)
            if not (lacking := _lacks_answers(batch, state, lines)):
                break
        if lacking and not lines.by_key:
            raise UserError(
                f"judge {endpoint.judge}: {endpoint.url or 'the endpoint'}: a batch is "
                f"{state.status} and gives no answer that can be read; run again to fetch its "
                "answers, or set `batch: false` to ask for them one by one"
            )
        return state, lines, lacking

    def _store_lines(self, endpoint: Endpoint, batch: Batch, found: str) -> None:
        state, lines, lacking = self._fetch(endpoint, batch, found)
        if not lines.answers and not lacking:
            self._stop_at_what_all_got(endpoint, batch, lines)
        for key, line in lines.by_key.items():
            if isinstance(self._store.get(key), Answer):
                continue  # kept before a crash
            price = batch.prices.get(key, 0.0)
            if line.error is None:
                self._store_answer(endpoint, batch, key, line, price)
            else:
                self._store_error(endpoint, batch, key, line, price if line.charged else 0.0)
        for key in sorted(set(batch.keys) - set(lines.by_key)):
            if self._store.get(key) is None:
                reason = f"not answered: the batch is {state.status}"
                price = batch.prices.get(key, 0.0) if lacking else 0.0
                self._store.put_failure(key, Failure(reason), batch.judge, price)
        self._end(batch)

    def _stop_at_what_all_got(self, endpoint: Endpoint, batch: Batch, lines: Lines) -> None:
        """Stop if no request was answered and what they met needs another configuration.

        Nothing is kept of them then, so they are asked for again once it is corrected.
        """
        errors = lines.errors
        remedies = {error.remedy(endpoint.model) for error in errors}
        charged = any(line.charged for line in lines.by_key.values())
        if not charged and len(remedies) == 1 and (remedy := remedies.pop()):
            self._end(batch)
            reason = endpoint.without_key(errors[0].reason)[:300]
            raise UserError(
                f"judge {endpoint.judge}: every request of a batch got: {reason}: "
                f"{endpoint.without_key(remedy)[:1000]}"
            )

    def _store_error(
        self, endpoint: Endpoint, batch: Batch, key: str, line: Line, max_usd: float
    ) -> None:
        reason = endpoint.without_key(line.reason)[:300]
        if line.error is not None and line.error.refused:
            answer = refused_by_filter(reason, charged=line.charged)
            self._store.put(key, answer, batch.judge, batch.model, max_usd=max_usd)
        elif self._store.get(key) is None:
            self._store.put_failure(key, Failure(reason), batch.judge, max_usd)

    def _store_answer(
        self, endpoint: Endpoint, batch: Batch, key: str, line: Line, max_usd: float
    ) -> None:
        price = self._limits.price
        answer = endpoint.answer(line.body, None if price is None else _at_batch_price(price.usd))
        self._store.put(key, answer, batch.judge, batch.model, max_usd=max_usd)

    def _end(self, batch: Batch) -> None:
        self._store.end_call(batch.call)
        self._store.end_batch(batch)

    def _price(self, request: Request) -> float:
        price = self._limits.price
        tokens = (request.prompt_tokens, request.answer_tokens)
        return price.usd(*tokens, batch=True) if price else 0.0

    def _user_error(self, endpoint: Endpoint, error: Exception) -> UserError:
        if isinstance(error, openai.NotFoundError):
            return UserError(
                f"judge {endpoint.judge}: {endpoint.url or 'the endpoint'} has no Batch API, or no "
                "such batch any more; set `batch: false`"
            )
        reason = str(error) if isinstance(error, UnreadableError) else endpoint.reason(error)
        return endpoint.fatal_error(error) or UserError(
            f"judge {endpoint.judge}: {endpoint.url or 'the endpoint'}: "
            f"{endpoint.without_key(reason)[:300]}; what was sent is recorded: run "
            "again to continue"
        )


def _parts(requests: Sequence[Request]) -> Iterator[list[Request]]:
    part: list[Request] = []
    size = 0
    for request in requests:
        length = len(json.dumps(request.body)) + 200
        if part and (len(part) == MAX_REQUESTS or size + length > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(request)
        size += length
    if part:
        yield part


def _lacks_answers(batch: Batch, state: BatchState, lines: Lines) -> bool:
    """Whether requests without a line may have been answered, and charged."""
    if len(lines.by_key) == len(batch.keys):
        return False
    return state.status == "completed" or lines.unread > 0 or state.completed > lines.answers


def _at_batch_price(usd: Callable[..., float]) -> Callable[[int, int], float]:
    return lambda prompt, answer: usd(prompt, answer, batch=True)
