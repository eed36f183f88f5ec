"""Requests to a judge model and their outcomes, however they are sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvfidelity.options import option

#: Names under which endpoints take the most tokens of an answer.
TOKENS_PARAMETERS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True)
class Request:
    """One call.

    body: of a chat completion: model, messages and parameters.
    variant: tells a repeated call from the first, such as {"repeat": 1}; empty for the first.
    endpoint: where it is sent, see `address.endpoint_name`.
    """

    body: Mapping[str, Any]
    variant: Mapping[str, int] = field(default_factory=dict)
    endpoint: str = ""

    @property
    def key(self) -> str:
        """SHA-256 of endpoint, body and variant, in hex: the key of its answer in the store."""
        content = [self.endpoint, self.body, self.variant]
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def prompt_tokens(self) -> int:
        """Upper estimate of the prompt's tokens, at three UTF-8 bytes each."""
        text = json.dumps(self.body, ensure_ascii=False)
        return len(text.encode("utf-8", "surrogatepass")) // 3

    @property
    def answer_tokens(self) -> int:
        """Tokens that the answer may have at most, its reasoning included."""
        return int(next(self.body[name] for name in TOKENS_PARAMETERS if name in self.body))


@dataclass(frozen=True)
class Answer:
    """A model's answer, whatever it holds.

    completion_tokens: with those of reasoning. usd: its cost when it was asked for; None if the
    price or the tokens are unknown. problem: why the answer has no text, if it is no completion.
    possible_usd: the most that may have been charged on top, see `Failure`; the store knows it.
    """

    content: str | None
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None = None
    reasoning_tokens: int | None = None
    problem: str | None = None
    possible_usd: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Why there is no answer.

    possible_usd: the highest price of tries that gave no answer and may have been charged, and of
    answers that say not how many tokens they used.
    """

    reason: str
    possible_usd: float = 0.0


Outcome = Answer | Failure


class Client(Protocol):
    """Sends requests."""

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """Outcomes in the order of the requests.

        Raises:
            UserError: no request can succeed now, such as for a wrong key or a spending cap;
                answers so far are kept.
        """


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens; the Batch API costs `batch` times that."""

    input: float
    output: float
    batch: float = 0.5

    def usd(self, prompt_tokens: int, answer_tokens: int, *, batch: bool = False) -> float:
        """Dollars for a call."""
        whole = (self.input * prompt_tokens + self.output * answer_tokens) / 1e6
        return whole * self.batch if batch else whole


@dataclass(frozen=True)
class Limits:
    """How fast and how much a judge asks; no verdict depends on it.

    The options are part of the config entry of every judge that needs the network. `price` comes
    from the config's `prices`.
    """

    concurrency: int = option(
        8,
        doc="requests in flight, over all jobs that share the store",
        low=1,
        changes_verdict=False,
    )
    tokens_per_minute: int | None = option(
        None,
        doc="tokens of this model per minute, prompts and answers, over all jobs that share the "
        "store",
        low=1,
        changes_verdict=False,
    )
    max_usd: float | None = option(
        None,
        doc="judging stops before this judge has spent more, over all runs that share the store",
        above=0,
        changes_verdict=False,
    )
    timeout_s: float = option(
        120,
        doc="seconds of one try; a longer one is given up and counted at its highest price, as it "
        "may be charged",
        above=0,
        changes_verdict=False,
    )
    poll_s: float = option(
        30, doc="seconds between looks at a batch", above=0, changes_verdict=False
    )
    price: Price | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Limits:
        """From JSON types."""
        price = values.get("price")
        return cls(**{**values, "price": Price(**price) if price else None})
