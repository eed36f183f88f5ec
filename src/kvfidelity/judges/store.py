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

import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kvfidelity.judges.journal import Journal
from kvfidelity.judges.locks import Locks
from kvfidelity.judges.requests import Answer, Failure, Limits, Outcome

MINUTE_S = 60.0
#: No moment and no price is beyond this number.
MOST = 1e15
#: What is kept of an answer; the rest follows from the other entries.
ANSWER_FIELDS = {item.name for item in fields(Answer)} - {"possible_usd"}


class CapReachedError(Exception):
    """Another call could cost more than a judge may spend."""

    def __init__(self, spent: float) -> None:
        super().__init__(spent)
        self.spent = spent


@dataclass(frozen=True)
class Call:
    """A call that was started.

    at: seconds since the epoch. tokens, usd: the most that it can use; usd is 0 without prices.
    key: of its request; None for a batch.
    """

    name: str
    judge: str
    model: str
    at: float
    tokens: int
    usd: float
    key: str | None = None


@dataclass(frozen=True)
class Batch:
    """A batch that was sent or was about to be sent.

    call: name of the `Call` that holds its cost. id: the endpoint's id, None until it is known.
    at: seconds since the epoch. usd: the highest price of each request. endpoint: see
    `Request.endpoint`; None in entries of earlier versions. file: the endpoint's id of its lines.
    """

    name: str
    judge: str
    model: str
    keys: tuple[str, ...]
    call: str | None
    id: str | None = None
    at: float | None = None
    usd: tuple[float, ...] = ()
    endpoint: str | None = None
    file: str | None = None

    @property
    def prices(self) -> dict[str, float]:
        """The highest price of each request by its key, as far as it is known."""
        return dict(zip(self.keys, self.usd, strict=False))


class AnswerStore:
    """A folder of answers by key, shared by any number of processes and machines.

    It also knows what was spent. A call is recorded before it is made. It is closed by its answer,
    or once it is known to have cost nothing. A call that was lost (a time limit, a connection that
    broke, a kill) is never closed and counts at its highest price, because it may have been
    charged; so does an answer that does not say how many tokens it used.

    The clock of the machine may jump: how long ago a call was is measured by this process's own,
    from when it first reads of it, and what is dated in the future is taken for long ago.
    """

    def __init__(self, folder: Path) -> None:
        self.locks = Locks(folder / "locks")
        self._journal = Journal(folder, self.locks)
        self._read_lock = threading.Lock()
        self._outcomes: dict[str, tuple[float, Outcome]] = {}
        self._calls: dict[str, Call] = {}
        self._closed: set[str] = set()
        self._open: dict[str, dict[str, float]] = defaultdict(dict)
        self._spent: dict[str, float] = defaultdict(float)
        self._possible: dict[str, float] = defaultdict(float)
        self._used: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._started: dict[str, float] = {}
        self._batches: dict[str, Batch] = {}
        self._ended: set[str] = set()
        self._stops: list[tuple[str, str]] = []

    def get(self, key: str) -> Outcome | None:
        """What any process kept under a key; the first answer if there are two."""
        with self._read_lock:
            if key not in self._outcomes:
                self._refresh()
            found = self._outcomes.get(key)
            return replace(found[1], possible_usd=self._possible_usd(key)) if found else None

    def put(
        self,
        key: str,
        answer: Answer,
        judge: str,
        model: str,
        call: str | None = None,
        max_usd: float = 0.0,
    ) -> None:
        """Keep an answer and close its call. It is on the disk when this returns.

        Args:
            max_usd: its highest price, which counts if the answer does not say its tokens.
        """
        entry = {"key": key, "at": time.time(), "judge": judge, "model": model, "call": call}
        kept = {name: value for name, value in asdict(answer).items() if name in ANSWER_FIELDS}
        self._journal.append(entry | {"max_usd": max_usd, "answer": kept})

    def put_failure(
        self, key: str, failure: Failure, judge: str | None = None, max_usd: float = 0.0
    ) -> None:
        """Record that a request of a batch will get no answer.

        Args:
            max_usd: its highest price, if it may have been charged.
        """
        entry = {"key": key, "at": time.time(), "judge": judge, "failure": failure.reason}
        self._journal.append(entry | {"max_usd": max_usd})

    def make_room(self, judge: str, answers: int) -> None:
        """Make sure that so many answers of a judge can be kept.

        Raises:
            UserError: the folder cannot be written, or its disk is full.
        """
        self._journal.make_room(judge, answers)

    def start_call(
        self,
        judge: str,
        model: str,
        tokens: int,
        usd: float,
        limits: Limits,
        key: str | None = None,
    ) -> str:
        """Record a call that is about to be made, once the tokens of the last minute allow it.

        Args:
            tokens, usd: the most that the call can use.
            key: of its request; None for a batch.

        Returns:
            The call's name, to close it with.

        Raises:
            CapReachedError: the call could cost more than is left.
        """
        while True:
            with self.locks.hold("calls"):
                spent = self.spent(judge)
                if limits.max_usd is not None and spent + usd > limits.max_usd:
                    raise CapReachedError(spent)
                wait = self._wait(model, tokens, limits.tokens_per_minute)
                if wait <= 0:
                    call = Call(uuid.uuid4().hex, judge, model, time.time(), tokens, usd, key)
                    self._started[call.name] = time.monotonic()
                    self._journal.append({"begin": asdict(call)}, durable=False)
                    return call.name
            time.sleep(min(wait, 1.0))

    def end_call(self, call: str | None) -> None:
        """Close a call that gave no answer and cost nothing."""
        if call is not None:
            self._journal.append({"end": call}, durable=False)

    def spent(self, judge: str) -> float:
        """Dollars that a judge has spent; what may have been charged counts at its highest."""
        with self._read_lock:
            self._refresh()
            open_calls = sum(call.usd for call in self._calls.values() if call.judge == judge)
            return self._spent[judge] + open_calls

    def possible_usd(self, key: str) -> float:
        """Dollars that may have been charged for a request beyond the cost of its answer."""
        with self._read_lock:
            self._refresh()
            return self._possible_usd(key)

    def answered_lately(self, model: str) -> bool:
        """Whether any process had an answer of a model within the last minute."""
        with self._read_lock:
            self._refresh()
            last = max((moment for moment, _ in self._used.get(model, ())), default=-math.inf)
        return last > time.monotonic() - MINUTE_S

    def stops(self) -> list[tuple[str, str]]:
        """What stopped the jobs of all processes, as pairs of what they asked and why."""
        with self._read_lock:
            self._refresh()
            return list(self._stops)

    def note_stop(self, asked: str, why: str) -> None:
        """Record what stops a job, for those that wait to ask the same."""
        self._journal.append({"stop": asked, "why": why}, durable=False)

    def note_batch(self, batch: Batch) -> None:
        """Record a batch, before it is sent and again once it has an id."""
        self._journal.append({"batch": asdict(batch)})

    def end_batch(self, batch: Batch) -> None:
        """Record that a batch will give no more answers."""
        self._journal.append({"batch_ended": batch.name})

    def open_batches(self, judge: str, endpoint: str) -> list[Batch]:
        """Batches of a judge at an endpoint that may still give answers, oldest first."""
        with self._read_lock:
            self._refresh()
            return [
                batch
                for batch in self._batches.values()
                if batch.judge == judge
                and batch.endpoint in (None, endpoint)
                and batch.name not in self._ended
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

    def _possible_usd(self, key: str) -> float:
        lost = self._open[key].values() if key in self._open else ()
        return self._possible.get(key, 0.0) + sum(lost)

    def _wait(self, model: str, tokens: int, limit: int | None) -> float:
        """Seconds until `tokens` more fit into a minute; a single call always fits."""
        if limit is None:
            return 0.0
        now = time.monotonic()
        with self._read_lock:
            recent = [use for use in self._used[model] if use[0] > now - MINUTE_S]
            self._used[model] = list(recent)
            calls = [call for call in self._calls.values() if call.model == model]
            recent += [(self._started[call.name], call.tokens) for call in calls]
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
        for file, entry in self._journal.read_new():
            try:
                self._read(entry)
            except (TypeError, ValueError, KeyError, AttributeError):
                self._journal.name_unread(file, "it is not of a form that this version reads")

    def _read(self, entry: Mapping[str, Any]) -> None:
        match entry:
            case {"key": str(key), "answer": dict(values)}:
                at, answer = _number(entry.get("at")), answer_of(values)
                self._settle(key, entry, answer.usd)
                used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
                started = self._started.get(str(entry.get("call")))
                moment = self._moment(at) if started is None else started
                self._used[str(entry.get("model"))].append((moment, used))
                self._keep(key, at, answer)
            case {"key": str(key), "failure": str(reason)}:
                if entry.get("max_usd"):
                    self._settle(key, entry, None)
                self._keep(key, _number(entry.get("at")), Failure(reason))
            case {"begin": dict(values)}:
                call = _call_of(values)
                if call.name not in self._closed:
                    self._calls[call.name] = call
                    if call.key is not None:
                        self._open[call.key][call.name] = call.usd
                    self._started.setdefault(call.name, self._moment(call.at))
            case {"end": str(name)}:
                self._close(name)
            case {"batch": dict(values)}:
                batch = _batch_of(values)
                self._batches[batch.name] = batch
            case {"stop": str(asked), "why": str(why)}:
                self._stops.append((asked, why))
            case {"batch_ended": str(name)}:
                self._ended.add(name)  # possibly before its batch is read, from another file
            case _:
                raise ValueError("an entry of another version")

    def _keep(self, key: str, at: float, outcome: Outcome) -> None:
        known = self._outcomes.get(key)
        if known is None or _rank(at, outcome) < _rank(*known):
            self._outcomes[key] = (at, outcome)

    def _settle(self, key: str, entry: Mapping[str, Any], usd: float | None) -> None:
        """Count an answer's cost once, however many files hold it."""
        identity = str(entry.get("call") or f"{key} {entry.get('at')}")
        call = self._close(identity)
        if f"answer {identity}" in self._closed:
            return
        self._closed.add(f"answer {identity}")
        if usd is None:
            usd = max(_number(entry.get("max_usd")), call.usd if call else 0.0)
            self._possible[key] += usd
        self._spent[str(entry.get("judge"))] += usd

    def _close(self, name: str) -> Call | None:
        self._closed.add(name)
        call = self._calls.pop(name, None)
        if call is not None and call.key is not None:
            self._open[call.key].pop(name, None)
        return call

    def _moment(self, at: float) -> float:
        """A moment of the machines' clocks on the clock of this process."""
        age = time.time() - at
        return time.monotonic() - (age if age >= 0 else 2 * MINUTE_S)


def answer_of(values: Mapping[str, Any]) -> Answer:
    """An answer as the store holds it, of this version or another."""

    def text(name: str) -> str | None:
        found = values.get(name)
        return found if isinstance(found, str) else None

    def count(name: str) -> int | None:
        found = values.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 2**31:
            return None
        return found

    usd = values.get("usd")
    unread = None if "content" in values else "it was kept in a form that is not read any more"
    return Answer(
        content=text("content"),
        refusal=text("refusal"),
        finish_reason=text("finish_reason"),
        prompt_tokens=count("prompt_tokens"),
        completion_tokens=count("completion_tokens"),
        usd=None if usd is None or not _number(usd, -1.0) >= 0 else _number(usd),
        reasoning_tokens=count("reasoning_tokens"),
        problem=text("problem") or unread,
    )


def _call_of(values: Mapping[str, Any]) -> Call:
    """A call as the store holds it.

    Raises:
        TypeError, ValueError: the values are not those of a call.
    """
    call = Call(**_known(Call, values))
    _require_texts(call.name, call.judge, call.model)
    _require_texts(*(text for text in (call.key,) if text is not None))
    tokens, usd = _number(call.tokens), max(0.0, _number(call.usd))
    return replace(call, at=_number(call.at), usd=usd, tokens=max(0, int(tokens)))


def _batch_of(values: Mapping[str, Any]) -> Batch:
    """A batch as the store holds it; raises as `_call_of` does."""
    batch = Batch(**_known(Batch, values))
    batch = replace(
        batch,
        keys=tuple(batch.keys),
        usd=tuple(max(0.0, _number(price)) for price in batch.usd),
        at=None if batch.at is None else _number(batch.at),
    )
    _require_texts(batch.name, batch.judge, batch.model, *batch.keys)
    optional = (batch.call, batch.id, batch.endpoint, batch.file)
    _require_texts(*(text for text in optional if text is not None))
    return batch


def _require_texts(*values: Any) -> None:
    if not all(isinstance(value, str) for value in values):
        raise TypeError("not a text")


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has fields for; those of later versions are left out."""
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _number(value: Any, default: float = 0.0) -> float:
    """A finite number as it is; the default for all else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < MOST else default


def _rank(at: float, outcome: Outcome) -> tuple[bool, float]:
    """Sort key of outcomes under one key: answers before failures, then the earliest."""
    return isinstance(outcome, Failure), at
