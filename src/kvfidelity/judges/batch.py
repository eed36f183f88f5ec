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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import openai

from kvfidelity.errors import UserError
from kvfidelity.judges.completion import refused_by_filter
from kvfidelity.judges.endpoint import Endpoint
from kvfidelity.judges.failures import HttpError
from kvfidelity.judges.json_text import parse_json, without_surrogates
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome, Request
from kvfidelity.judges.store import AnswerStore, Batch, CapReachedError

#: Limits of one batch.
MAX_REQUESTS, MAX_BYTES = 50_000, 180_000_000
#: The batch's metadata that holds our name for it.
NAME = "kvfidelity"
FINISHED = ("completed", "expired", "cancelled", "failed")
#: Batches that the endpoint lists at once.
PAGE = 100
#: Looks at the list for a batch whose id is not known, `poll_s` apart, until it counts as not sent.
LOOKS = 3
#: Seconds by which the clocks of this machine and of the endpoint may differ.
CLOCKS_S = 86_400


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
                except openai.OpenAIError as error:
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
        file = (f"{batch.name}.jsonl", text.encode())
        return endpoint.client.files.create(file=file, purpose="batch").id

    def _create(self, endpoint: Endpoint, batch: Batch) -> str:
        """The id of the batch; the request that creates it is never repeated.

        Raises:
            openai.OpenAIError: it is not created, or nobody knows.
        """
        path: Any = endpoint.batch_path
        client = endpoint.client.with_options(max_retries=0)
        try:
            found = client.batches.create(
                completion_window="24h",
                endpoint=path,
                input_file_id=str(batch.file),
                metadata={NAME: batch.name},
            ).id
            if found and isinstance(found, str):
                return found
            error: Exception = openai.OpenAIError("the endpoint gave a batch no id")
        except openai.APIStatusError as refused:
            if refused.status_code < 500 and refused.status_code != 408:
                self._end(batch)  # refused: there is no such batch
                raise
            error = refused
        except (openai.APIConnectionError, ValueError) as broken:
            error = broken
        known = self._look_up(endpoint, batch)
        if known is None:
            raise UserError(
                f"judge {endpoint.judge}: {endpoint.reason(error)}: the endpoint does not list the "
                "batch that was sent; run again to look for it and to send what was not taken"
            )
        return known

    def _look_up(self, endpoint: Endpoint, batch: Batch) -> str | None:
        """The id of a batch by its name; None if the endpoint does not list it after some time."""
        for look in range(LOOKS):
            if look:
                time.sleep(self._limits.poll_s)
            if found := _find_id(endpoint, batch):
                return found
        return None

    def _finish_open(self, endpoint: Endpoint) -> None:
        """Wait for every batch that was sent, and keep its answers."""
        for batch in self._store.open_batches(endpoint.judge, endpoint.name):
            found = batch.id or self._look_up(endpoint, batch)
            if found is None:  # never sent
                self._end(batch)
                continue
            while (state := endpoint.client.batches.retrieve(found)).status not in FINISHED:
                time.sleep(self._limits.poll_s)
            if state.status == "failed":
                self._end(batch)
                problems = (state.errors.data or []) if state.errors else []
                reason = (
                    "; ".join(str(problem.message) for problem in problems) or "no reason given"
                )
                raise UserError(
                    f"judge {endpoint.judge}: the endpoint refused a batch: "
                    f"{endpoint.without_key(reason)}; correct the judge's entry, or set `batch: "
                    "false`"
                )
            self._store_answers(endpoint, batch, state)

    def _store_answers(self, endpoint: Endpoint, batch: Batch, state: Any) -> None:
        open_keys, prices, unread = set(batch.keys), batch.prices, 0
        answered, errors = False, dict[str, HttpError]()
        for file in (state.output_file_id, state.error_file_id):
            for line in _lines(endpoint, file):
                key = line.get("custom_id") if line else None
                if line is None:
                    unread += 1
                elif isinstance(key, str) and key in open_keys:
                    open_keys.discard(key)
                    if error := _error(line):
                        errors[key] = error
                        continue
                    answered = True
                    self._store_answer(endpoint, batch, key, line, prices.get(key, 0.0))
        if errors and not answered and not unread:
            self._stop_at_what_all_got(endpoint, batch, list(errors.values()))
        for key, error in errors.items():
            self._store_error(endpoint, batch, key, error)
        for key in sorted(open_keys):
            if self._store.get(key) is None:
                reason = f"not answered: the batch is {state.status}"
                # A line that cannot be read may have been this one's answer.
                price = prices.get(key, 0.0) if unread else 0.0
                self._store.put_failure(key, Failure(reason), batch.judge, price)
        self._end(batch)

    def _stop_at_what_all_got(
        self, endpoint: Endpoint, batch: Batch, errors: Sequence[HttpError]
    ) -> None:
        """Stop if no request was answered and what they met needs another configuration.

        Nothing is kept of them then, so they are asked for again once it is corrected.
        """
        remedies = {error.remedy(endpoint.model) for error in errors}
        if len(remedies) == 1 and (remedy := remedies.pop()):
            self._end(batch)
            reason = endpoint.without_key(errors[0].reason)[:300]
            raise UserError(
                f"judge {endpoint.judge}: every request of a batch got: {reason}: {remedy}"
            )

    def _store_error(self, endpoint: Endpoint, batch: Batch, key: str, error: HttpError) -> None:
        if isinstance(self._store.get(key), Answer):
            return  # kept before a crash
        reason = endpoint.without_key(error.reason)[:300]
        if error.refused:
            self._store.put(key, refused_by_filter(reason), batch.judge, batch.model)
        else:
            self._store.put_failure(key, Failure(reason))

    def _store_answer(
        self,
        endpoint: Endpoint,
        batch: Batch,
        key: str,
        line: Mapping[str, Any],
        max_usd: float,
    ) -> None:
        if isinstance(self._store.get(key), Answer):
            return  # kept before a crash
        price = self._limits.price
        usd = None if price is None else _at_batch_price(price.usd)
        answer = endpoint.answer(line["response"].get("body"), usd)
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
        return endpoint.fatal_error(error) or UserError(
            f"judge {endpoint.judge}: {endpoint.reason(error)}; what was sent is recorded: run "
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


def _find_id(endpoint: Endpoint, batch: Batch) -> str | None:
    """The endpoint's id of our batch, found by name among those that are not older."""
    for state in endpoint.client.batches.list(limit=PAGE):
        if (state.metadata or {}).get(NAME) == batch.name:
            return state.id
        if batch.file is not None and state.input_file_id == batch.file:
            return state.id
        if batch.at is not None and state.created_at < batch.at - CLOCKS_S:
            break
    return None


def _lines(endpoint: Endpoint, file: str | None) -> Iterator[dict[str, Any] | None]:
    """The objects of a file's lines; None for a line that is none."""
    if file is None:
        return
    text = endpoint.client.files.content(file).content.decode("utf-8", "replace")
    for line in text.removeprefix("\ufeff").split("\n"):
        if line.strip():
            try:
                entry = parse_json(line)
            except ValueError:
                entry = None
            yield entry if isinstance(entry, dict) else None


def _error(line: Mapping[str, Any]) -> HttpError | None:
    """The error of a line; None if it holds an answer. Without a status it is taken for a fault of
    the request, 400."""
    response = line.get("response")
    response = response if isinstance(response, dict) else {}
    status, error = response.get("status_code"), line.get("error")
    if status == 200 and not error:
        return None
    body = {"error": error} if error else response.get("body")
    text = without_surrogates(json.dumps(body, ensure_ascii=False))
    if not isinstance(status, int) or not 300 <= status < 600:
        status = 400
    return HttpError(status, {}, text)


def _at_batch_price(usd: Callable[..., float]) -> Callable[[int, int], float]:
    return lambda prompt, answer: usd(prompt, answer, batch=True)
