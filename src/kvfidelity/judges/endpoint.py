"""The `openai` client for a judge's entry: one try of a request, and what its errors mean."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import openai

from kvfidelity.errors import UserError
from kvfidelity.judges.address import url_fault, variable_fault
from kvfidelity.judges.completion import (
    Usd,
    read_completion,
    refused_by_filter,
    unreadable_completion,
)
from kvfidelity.judges.connection_errors import client_fault, connection_remedy
from kvfidelity.judges.failures import HttpError, error_in, is_web_page
from kvfidelity.judges.json_text import parse_json
from kvfidelity.judges.kinds.openai import OPENAI_URL, endpoint_name, with_defaults
from kvfidelity.judges.requests import Answer, Limits, Request

#: Further tries of what may pass, see `online` and `batch`.
RETRIES = 8
HIDDEN = "[key]"
#: Bytes of an answer at most.
MAX_BODY_BYTES = 4_000_000
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
            "max_retries": RETRIES,
            "timeout": limits.timeout_s,
        }
        self._timeout_s = limits.timeout_s
        self.client: openai.OpenAI
        try:
            # A redirect is said, not followed: with the key, to wherever it leads.
            options["http_client"] = openai.DefaultHttpxClient(follow_redirects=False)
            if azure:
                version = entry["api_version"]
                self.client = openai.AzureOpenAI(
                    azure_endpoint=str(self.url), api_version=version, **options
                )
            else:
                self.client = openai.OpenAI(base_url=self.url or OPENAI_URL, **options)
        except Exception as error:  # noqa: BLE001 - the HTTP library's own, on odd variables
            raise UserError(f"judge {judge}: {self.without_key(client_fault(error))}") from None

    def without_key(self, text: str) -> str:
        """A text from the endpoint with the key replaced, if it contains the key."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def fatal_error(self, error: Exception) -> UserError | None:
        """The user's error if every request would fail like this; None if only this one fails."""
        remedy = connection_remedy(error, self.url) or _remedy(error, self.model)
        if remedy is None:
            return None
        reason = self.without_key(" ".join(str(error).split()))[:300]
        where = self.url or "the endpoint"
        return UserError(f"judge {self.judge}: {where}: {reason}: {remedy}")

    def reason(self, error: Exception) -> str:
        """Why one request failed."""
        return f"{type(error).__name__}: {self.without_key(' '.join(str(error).split()))[:300]}"

    def ask(self, request: Request, usd: Usd | None) -> Answer | Trouble:
        """One try of a request; an answer is returned whatever it holds.

        Args:
            usd: dollars for prompt and answer tokens; None if prices are unknown.
        """
        try:
            headers, text = self._receive(request)
        except openai.APIStatusError as error:
            found = HttpError(error.status_code, error.response.headers, error.response.text)
        except openai.APIConnectionError as error:
            return self._connection_trouble(error)
        except BodyLostError as error:
            return Trouble(self.without_key(str(error)), lost=True, passing=True)
        else:
            if is_web_page(headers, text):
                return self._http_trouble(HttpError(200, headers, text))
            try:
                body = parse_json(text)
            except ValueError as error:
                return unreadable_completion(f"no chat completion came back: {error}"[:300])
            status = error_in(body)
            if status is None:
                return self.answer(body, usd, request)
            found = HttpError(status, headers, text)
        if found.refused:
            return refused_by_filter(self.without_key(found.reason)[:300])
        return self._http_trouble(found)

    def answer(self, body: Any, usd: Usd | None, request: Request | None = None) -> Answer:
        """An answer from a chat completion in JSON types, see `completion.read_completion`."""
        answer = read_completion(body, usd, request)
        return replace(
            answer,
            content=answer.content and self.without_key(answer.content),
            refusal=answer.refusal and self.without_key(answer.refusal),
        )

    def _receive(self, request: Request) -> tuple[Mapping[str, str], str]:
        """Headers and text of a completion's body.

        Raises:
            openai.OpenAIError: there is none. BodyLostError: it began and did not end in time.
        """
        deadline = time.monotonic() + self._timeout_s
        client = self.client.with_options(max_retries=0)
        with client.chat.completions.with_streaming_response.create(**request.body) as response:
            parts: list[bytes] = []
            size = 0
            chunks = response.iter_bytes()
            while True:
                try:
                    part = next(chunks, None)
                except Exception as error:  # noqa: BLE001 - of the HTTP library of the client
                    name, words = type(error).__name__, " ".join(str(error).split())[:200]
                    raise BodyLostError(f"{name}: {words or 'the answer broke off'}") from None
                if part is None:
                    return response.headers, b"".join(parts).decode("utf-8", "replace")
                parts.append(part)
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise BodyLostError(f"the answer has more than {MAX_BODY_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise BodyLostError("the answer took longer than `timeout_s`")

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
        return Trouble(reason, fatal=self._fatal(reason, remedy))

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
        return UserError(f"judge {self.judge}: {self.url or 'the endpoint'}: {reason}: {remedy}")


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


class BodyLostError(Exception):
    """An answer began and did not end; it may have been charged."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors behind it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


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
