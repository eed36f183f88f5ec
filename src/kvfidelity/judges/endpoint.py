"""The endpoint of a judge's entry: one try of a request, and what its errors mean."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import openai

from kvfidelity.errors import UserError
from kvfidelity.judges.address import OPENAI_URL, endpoint_name, url_fault, variable_fault
from kvfidelity.judges.completion import (
    Usd,
    read_completion,
    refused_by_filter,
    unreadable_completion,
)
from kvfidelity.judges.connection_errors import client_fault, connection_remedy
from kvfidelity.judges.exchange import MAX_BODY_BYTES, Exchanges, causes
from kvfidelity.judges.failures import HttpError, error_in, is_web_page
from kvfidelity.judges.json_text import parse_json
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.requests import Answer, Limits, Request

#: Further tries of what may pass, see `online`.
RETRIES = 8
HIDDEN = "[key]"
#: Statuses of a completion.
SUCCESS = range(200, 300)
#: Errors of the HTTP library with which a request never left, and those of what cannot be sent.
UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
INVALID = {"UnsupportedProtocol", "LocalProtocolError", "InvalidURL", "TooManyRedirects"}
#: The client's variable that would send requests, and the key, to another endpoint.
REDIRECTING = "OPENAI_BASE_URL"


class Endpoint:
    """Where a judge's model is.

    Args:
        judge: its name in the config. entry: its config entry. limits: for the timeout.

    Raises:
        UserError: the environment variable for the key is not set.
    """

    def __init__(self, judge: str, entry: Mapping[str, Any], limits: Limits) -> None:
        entry = with_defaults(entry)
        self.judge, self.model = judge, str(entry["model"])
        self.url = entry["base_url"]
        for key, fault in _address_faults(entry):
            raise UserError(f"judge {judge}: {key}: {fault}")
        self.name = endpoint_name(entry)
        if self.url is None and os.environ.get(REDIRECTING, OPENAI_URL).rstrip("/") != OPENAI_URL:
            raise UserError(
                f"judge {judge}: {REDIRECTING} is set and the judge has no `base_url`: write the "
                "address into the judge's entry, or unset the variable"
            )
        azure = entry["api"] == "azure"
        #: The path in a batch's requests; Azure's has no version.
        self.batch_path = "/chat/completions" if azure else "/v1/chat/completions"
        self._key = _api_key(judge, entry["api_key_env"])
        options: dict[str, Any] = {
            "api_key": self._key or "none",
            "max_retries": 0,
        }
        if azure:
            options |= {"azure_endpoint": str(self.url), "api_version": entry["api_version"]}
        else:
            options["base_url"] = self.url or OPENAI_URL
        kind = openai.AsyncAzureOpenAI if azure else openai.AsyncOpenAI

        def connect(http: Any) -> openai.AsyncOpenAI:
            return kind(http_client=http, timeout=http.timeout, **options)

        try:
            #: For single requests, see `ask`, and for the calls of the Batch API.
            self.exchanges = Exchanges(connect, limits.timeout_s)
        except Exception as error:  # noqa: BLE001 - the HTTP library's own, on odd variables
            raise UserError(f"judge {judge}: {self.without_key(client_fault(error))}") from None

    def without_key(self, text: str) -> str:
        """A text from the endpoint with the key replaced, as it is, in an URL and in JSON."""
        forms = {self._key, quote(self._key, safe=""), json.dumps(self._key)[1:-1]}
        for form in filter(None, forms):
            text = text.replace(form, HIDDEN)
        return text

    def _all_without_key(self, value: Any) -> Any:
        """A value in JSON types with the key replaced in each text, before any text is cut."""
        if isinstance(value, str):
            return self.without_key(value)
        if isinstance(value, list):
            return [self._all_without_key(item) for item in value]
        if isinstance(value, dict):
            return {self.without_key(k): self._all_without_key(v) for k, v in value.items()}
        return value

    def fatal_error(self, error: Exception) -> UserError | None:
        """The user's error if every request would fail like this; None if only this one fails."""
        remedy = connection_remedy(error, self.url) or _remedy(error, self.model)
        if remedy is None:
            return None
        reason = self.without_key(" ".join(str(error).split()))[:300]
        return self._fatal(reason, remedy)

    def reason(self, error: Exception) -> str:
        """Why one request failed."""
        return f"{type(error).__name__}: {self.without_key(' '.join(str(error).split()))[:300]}"

    def ask(self, request: Request, usd: Usd | None) -> Answer | Trouble:
        """One try of a request; an answer is returned whatever it holds.

        Args:
            usd: dollars for prompt and answer tokens; None if prices are unknown.
        """
        try:
            got = self.exchanges.ask(request.body)
        except openai.APIConnectionError as error:
            return self._connection_trouble(error)
        except TimeoutError:
            return Trouble("the answer took longer than `timeout_s`", lost=True, passing=True)
        except Exception as error:  # noqa: BLE001 - of the client, on an answer of a hostile form
            return Trouble(self.reason(error), lost=True, passing=True)
        error_status = None if got.status in SUCCESS else got.status
        if error_status is None:
            if got.broken:
                return Trouble(self.without_key(got.broken), lost=True, passing=True)
            if got.too_large:
                return unreadable_completion(f"the answer has more than {MAX_BODY_BYTES} bytes")
            if is_web_page(got.headers, got.text):
                return self._http_trouble(HttpError(got.status, got.headers, got.text))
            try:
                body = parse_json(got.text)
            except ValueError as error:
                told = self.without_key(f"no chat completion came back: {error}")
                return unreadable_completion(told[:300])
            error_status = error_in(body)
            if error_status is None:
                return self.answer(body, usd, request)
        found = HttpError(error_status, got.headers, got.text)
        if found.refused:
            return refused_by_filter(self.without_key(found.reason)[:300], charged=found.lost)
        trouble = self._http_trouble(found)
        if got.broken and trouble.fatal is None:
            # Its words, which say more than the status, may come with another try.
            reason = f"{trouble.reason} ({self.without_key(got.broken)})"
            return replace(trouble, reason=reason, lost=True, passing=True)
        return trouble

    def answer(self, body: Any, usd: Usd | None, request: Request | None = None) -> Answer:
        """An answer from a chat completion in JSON types, see `completion.read_completion`."""
        return read_completion(self._all_without_key(body), usd, request)

    def _http_trouble(self, found: HttpError) -> Trouble:
        reason = self.without_key(found.reason)[:300]
        remedy = found.remedy(self.model)
        limited = found.status == 429
        if remedy is None:
            return Trouble(
                reason + found.hint,
                lost=found.lost,
                passing=found.passing,
                limited=limited,
                retry_after=found.retry_after,
            )
        return Trouble(reason, lost=found.lost, fatal=self._fatal(reason, remedy))

    def _connection_trouble(self, error: openai.APIConnectionError) -> Trouble:
        names = {type(link).__name__ for link in causes(error)}
        reason = self.reason(error)
        if isinstance(error, openai.APITimeoutError):
            reason += " (`timeout_s` may be too short)"
        if names & INVALID:
            remedy = "the request cannot be sent; correct the key, `base_url` and proxy variables"
            return Trouble(reason, fatal=self._fatal(reason, remedy))
        return Trouble(reason, lost=not names & UNSENT, passing=True, fatal=self.fatal_error(error))

    def _fatal(self, reason: str, remedy: str) -> UserError:
        where, told = self.url or "the endpoint", self.without_key(remedy)[:1000]
        return UserError(f"judge {self.judge}: {where}: {reason}: {told}")


@dataclass(frozen=True)
class Trouble:
    """Why a try gave no answer.

    lost: it may have been charged. passing: another try may succeed. limited: the endpoint asks to
    wait, for `retry_after` seconds if it says so. fatal: every request gets this; if it is
    `passing`, once further tries got it too.
    """

    reason: str
    lost: bool = False
    passing: bool = False
    limited: bool = False
    retry_after: float | None = None
    fatal: UserError | None = None


def _address_faults(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    checks = {"base_url": url_fault, "api_key_env": variable_fault}
    for key, check in checks.items():
        if fault := check(entry[key]):
            yield key, fault


def _api_key(judge: str, variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"judge {judge}: the key in {variable} has a line break, a space or another character "
            "that no key has: correct it"
        )
    if not key:
        raise UserError(
            f"judge {judge} needs its key in the environment variable {variable}: set it, or take "
            "the judge out of `judging` (`api_key_env: null` is for an endpoint that needs no key)"
        )
    return key


def _remedy(error: Exception, model: str) -> str | None:
    if not isinstance(error, openai.APIStatusError):
        return None
    return HttpError(error.status_code, error.response.headers, error.response.text).remedy(model)
