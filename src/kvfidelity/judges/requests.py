"""What is asked of a judge model and what comes back, whichever way it is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvfidelity.options import option


@dataclass(frozen=True)
class Request:
    """One call.

    body: of a chat completion: model, messages and parameters. mark: what tells it from the same
    call made another time, such as {"repeat": 1}; empty the first time.
    """

    body: Mapping[str, Any]
    variant: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 of all of it: the name under which its answer is kept."""
        text = json.dumps([self.body, self.variant], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def prompt_tokens(self) -> int:
        """About as many tokens as the prompt has at most: three UTF-8 bytes each."""
        text = json.dumps(self.body, ensure_ascii=False)
        return len(text.encode("utf-8", "surrogatepass")) // 3

    @property
    def answer_tokens(self) -> int:
        """As many tokens as the answer may have."""
        return int(self.body["max_completion_tokens"])


@dataclass(frozen=True)
class Answer:
    """What a model said. usd: what it cost when it was asked, None if its price is not known."""

    content: str | None
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why there is no answer."""

    reason: str


Outcome = Answer | Failure


class Client(Protocol):
    """Sends requests."""

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        """Outcomes in the order of the requests.

        Raises:
            UserError: nothing can be had any more, such as for a wrong key or a cap on spending;
                what was answered until then is kept.
        """


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens; `batch` is the Batch API's share of them."""

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
    timeout_s: float = option(120, doc="seconds of one try", above=0, changes_verdict=False)
    poll_s: float = option(
        30, doc="seconds between looks at a batch", above=0, changes_verdict=False
    )
    price: Price | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Limits:
        """From plain values."""
        price = values.get("price")
        return cls(**{**values, "price": Price(**price) if price else None})
