"""Keeps every paid answer as soon as it arrives, so that it is never paid for twice.

This takes three files, each with its own reason to change:

- `store`: what an entry means (answers, spending, token rates, open batches);
- `journal`: how an entry reaches the disk, one append-only file per machine, safe against kills;
- `locks`: who may act now, across threads, processes and machines. Locks are also used without the
  journal: for equal requests, for `concurrency`, and for one sender of batches at a time.

A database would replace `journal` but not `locks`, and SQLite is not safe on network file systems,
where clusters keep this folder.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvfidelity.judges.journal import Journal
from kvfidelity.judges.locks import Locks
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome

MINUTE_S = 60.0


class CapReachedError(Exception):
    """Another call could cost more than a judge may spend."""

    def __init__(self, spent: float) -> None:
        super().__init__(spent)
        self.spent = spent


@dataclass(frozen=True)
class Call:
    """A call that was started.

    at: seconds since the epoch. tokens, usd: the most that it can use; usd is 0 without prices.
    """

    name: str
    judge: str
    model: str
    at: float
    tokens: int
    usd: float


@dataclass(frozen=True)
class Batch:
    """A batch that was sent or was about to be sent.

    call: name of the `Call` that holds its cost. id: the endpoint's id, None until it is known.
    """

    name: str
    judge: str
    model: str
    keys: tuple[str, ...]
    call: str | None
    id: str | None = None


class AnswerStore:
    """A folder of answers by key, shared by any number of processes and machines.

    It also knows what was spent. A call is recorded before it is made and closed when it ends. A
    call that was in flight at a kill is never closed and counts at its highest price, because
    it may have been charged.
    """

    def __init__(self, folder: Path) -> None:
        self.locks = Locks(folder / "locks")
        self._journal = Journal(folder, self.locks)
        self._read_lock = threading.Lock()
        self._outcomes: dict[str, tuple[float, Outcome]] = {}
        self._calls: dict[str, Call] = {}
        self._spent: dict[str, float] = defaultdict(float)
        self._used: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._batches: dict[str, Batch] = {}
        self._ended: set[str] = set()

    def get(self, key: str) -> Outcome | None:
        """What any process kept under a key; the first answer if there are two."""
        with self._read_lock:
            if key not in self._outcomes:
                self._refresh()
            found = self._outcomes.get(key)
        return found[1] if found else None

    def put(
        self, key: str, answer: Answer, judge: str, model: str, call: str | None = None
    ) -> None:
        """Keep an answer and close its call. It is on the disk when this returns."""
        entry = {"key": key, "at": time.time(), "judge": judge, "model": model, "call": call}
        self._journal.append(entry | {"answer": asdict(answer)})

    def put_failure(self, key: str, failure: Failure) -> None:
        """Record that a request of a batch will get no answer."""
        self._journal.append({"key": key, "at": time.time(), "failure": failure.reason})

    def start_call(
        self, judge: str, model: str, tokens: int, usd: float, limits: Limits
    ) -> str | None:
        """Record a call that is about to be made, once the tokens of the last minute allow it.

        Args:
            tokens, usd: the most that the call can use.

        Returns:
            The call's name, to close it with; None if this judge has no limits.

        Raises:
            CapReachedError: the call could cost more than is left.
        """
        if limits.max_usd is None and limits.tokens_per_minute is None:
            return None
        while True:
            with self.locks.hold("calls"):
                spent = self.spent(judge)
                if limits.max_usd is not None and spent + usd > limits.max_usd:
                    raise CapReachedError(spent)
                wait = self._wait(model, tokens, limits.tokens_per_minute)
                if wait <= 0:
                    call = Call(uuid.uuid4().hex, judge, model, time.time(), tokens, usd)
                    self._journal.append({"begin": asdict(call)}, durable=False)
                    return call.name
            time.sleep(min(wait, 1.0))

    def end_call(self, call: str | None) -> None:
        """Close a call that gave no answer; it cost nothing."""
        if call is not None:
            self._journal.append({"end": call}, durable=False)

    def spent(self, judge: str) -> float:
        """Dollars that a judge has spent; open calls count at their highest price."""
        with self._read_lock:
            self._refresh()
            open_calls = sum(call.usd for call in self._calls.values() if call.judge == judge)
            return self._spent[judge] + open_calls

    def note_batch(self, batch: Batch) -> None:
        """Record a batch, before it is sent and again once it has an id."""
        self._journal.append({"batch": asdict(batch)})

    def end_batch(self, batch: Batch) -> None:
        """Record that a batch will give no more answers."""
        self._journal.append({"batch_ended": batch.name})

    def open_batches(self, judge: str) -> list[Batch]:
        """Batches of a judge that may still give answers, oldest first."""
        with self._read_lock:
            self._refresh()
            return [
                batch
                for batch in self._batches.values()
                if batch.judge == judge and batch.name not in self._ended
            ]

    def answers(self) -> Iterator[tuple[str, Outcome]]:
        """All outcomes by key."""
        with self._read_lock:
            self._refresh()
            kept = list(self._outcomes.items())
        for key, (_, outcome) in kept:
            yield key, outcome

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The keys without an outcome, each once."""
        return [key for key in dict.fromkeys(keys) if self.get(key) is None]

    def _wait(self, model: str, tokens: int, limit: int | None) -> float:
        """Seconds until `tokens` more fit into a minute; a single call always fits."""
        if limit is None:
            return 0.0
        now = time.time()
        with self._read_lock:
            recent = [use for use in self._used[model] if use[0] > now - MINUTE_S]
            self._used[model] = list(recent)
            recent += [(c.at, c.tokens) for c in self._calls.values() if c.model == model]
        recent = sorted(use for use in recent if use[0] > now - MINUTE_S)
        total = sum(count for _, count in recent)
        for at, count in recent:
            if total + tokens <= limit:
                break
            total -= count
            if total + tokens <= limit or total == 0:
                return at + MINUTE_S - now
        return 0.0

    def _refresh(self) -> None:
        for entry in self._journal.read_new():
            match entry:
                case {"key": str(key), "at": at, "answer": dict(values)}:
                    answer = Answer(**values)
                    self._keep(key, at, answer)
                    self._settle_call(entry, answer)
                case {"key": str(key), "at": at, "failure": str(reason)}:
                    self._keep(key, at, Failure(reason))
                case {"begin": dict(values)}:
                    call = Call(**values)
                    self._calls[call.name] = call
                case {"end": str(name)}:
                    self._calls.pop(name, None)
                case {"batch": dict(values)}:
                    batch = Batch(**{**values, "keys": tuple(values["keys"])})
                    self._batches[batch.name] = batch
                case {"batch_ended": str(name)}:
                    self._ended.add(
                        name
                    )  # possibly before its batch is read, from another machine's file

    def _keep(self, key: str, at: float, outcome: Outcome) -> None:
        known = self._outcomes.get(key)
        if known is None or _rank(at, outcome) < _rank(*known):
            self._outcomes[key] = (at, outcome)

    def _settle_call(self, entry: Mapping[str, Any], answer: Answer) -> None:
        call = self._calls.pop(entry.get("call") or "", None)
        # An endpoint that reports no tokens must not bypass the cap.
        max_usd = call.usd if call else 0.0
        self._spent[entry["judge"]] += max_usd if answer.usd is None else answer.usd
        if entry["at"] > time.time() - MINUTE_S:
            used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
            self._used[entry["model"]].append((entry["at"], used))


def _rank(at: float, outcome: Outcome) -> tuple[bool, float]:
    """Sort key of outcomes under one key: answers before failures, then the earliest."""
    return isinstance(outcome, Failure), at
