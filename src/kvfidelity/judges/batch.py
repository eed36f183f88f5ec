"""Requests sent together through the Batch API: slower, and at a lower price.

A batch is recorded before it is sent. After a crash, the next run finds it by its id or, if the
crash came before the id was recorded, by the name in the batch's metadata. Nothing is sent twice.
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
from kvfidelity.judges.endpoint import Endpoint
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome, Request
from kvfidelity.judges.store import AnswerStore, Batch, CapReachedError

#: Limits of one batch.
MAX_REQUESTS, MAX_BYTES = 50_000, 180_000_000
#: The batch's metadata that holds our name for it.
NAME = "kvfidelity"
FINISHED = ("completed", "expired", "cancelled", "failed")
#: How many of the endpoint's latest batches are looked through for one whose id was lost.
MAX_LISTED = 500


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
        path: Any = endpoint.batch_path
        for part in _parts(requests):
            usd = sum(self._price(request) for request in part)
            try:
                call = self._store.start_call(
                    endpoint.judge,
                    endpoint.model,
                    0,
                    usd,
                    replace(self._limits, tokens_per_minute=None),
                )
            except CapReachedError as error:
                self._finish_open(endpoint)
                raise UserError(
                    f"judge {endpoint.judge}: {error.spent:.4f} dollars are spent and a batch of "
                    f"{len(part)} requests could cost {usd:.4f} more, beyond `max_usd: "
                    f"{self._limits.max_usd}`: raise it and run again to continue"
                ) from None
            keys = tuple(request.key for request in part)
            batch = Batch(uuid.uuid4().hex, endpoint.judge, endpoint.model, keys, call)
            self._store.note_batch(batch)
            lines = [
                {"custom_id": r.key, "method": "POST", "url": path, "body": r.body} for r in part
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            file = endpoint.client.files.create(
                file=(f"{batch.name}.jsonl", text.encode()), purpose="batch"
            )
            sent = endpoint.client.batches.create(
                completion_window="24h",
                endpoint=path,
                input_file_id=file.id,
                metadata={NAME: batch.name},
            )
            self._store.note_batch(replace(batch, id=sent.id))

    def _finish_open(self, endpoint: Endpoint) -> None:
        """Wait for every batch that was sent, and keep its answers."""
        for batch in self._store.open_batches(endpoint.judge):
            found = batch.id or _find_id(endpoint, batch)
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
        open_keys = set(batch.keys)
        for file in (state.output_file_id, state.error_file_id):
            for line in _lines(endpoint, file):
                key = line.get("custom_id")
                if key in open_keys:
                    open_keys.discard(key)
                    self._store_answer(endpoint, batch, str(key), line)
        for key in sorted(open_keys):
            self._store.put_failure(key, Failure(f"not answered: the batch is {state.status}"))
        self._end(batch)

    def _store_answer(
        self, endpoint: Endpoint, batch: Batch, key: str, line: Mapping[str, Any]
    ) -> None:
        if isinstance(self._store.get(key), Answer):
            return  # kept before a crash
        response = line.get("response") or {}
        price = self._limits.price
        try:
            if line.get("error") or response.get("status_code") != 200:
                raise ValueError(_reason(line))
            usd = None if price is None else _at_batch_price(price.usd)
            answer = endpoint.answer(response.get("body") or {}, usd)
        except ValueError as error:
            self._store.put_failure(key, Failure(endpoint.without_key(str(error))[:300]))
        else:
            self._store.put(key, answer, batch.judge, batch.model)

    def _end(self, batch: Batch) -> None:
        self._store.end_call(batch.call)
        self._store.end_batch(batch)

    def _price(self, request: Request) -> float:
        price = self._limits.price
        tokens = (request.prompt_tokens, request.answer_tokens)
        return price.usd(*tokens, batch=True) if price else 0.0

    def _user_error(self, endpoint: Endpoint, error: openai.OpenAIError) -> UserError:
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
    """The endpoint's id of our batch, found by name; None if it was never sent."""
    for number, state in enumerate(endpoint.client.batches.list(limit=100)):
        if (state.metadata or {}).get(NAME) == batch.name:
            return state.id
        if number == MAX_LISTED:
            break
    return None


def _lines(endpoint: Endpoint, file: str | None) -> Iterator[dict[str, Any]]:
    if file is None:
        return
    for line in endpoint.client.files.content(file).text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # its request counts as not answered
        if isinstance(entry, dict):
            yield entry


def _reason(line: Mapping[str, Any]) -> str:
    body = (line.get("response") or {}).get("body") or {}
    error = line.get("error") or body.get("error") or {}
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or f"status {(line.get('response') or {}).get('status_code')}")


def _at_batch_price(usd: Callable[..., float]) -> Callable[[int, int], float]:
    return lambda prompt, answer: usd(prompt, answer, batch=True)
