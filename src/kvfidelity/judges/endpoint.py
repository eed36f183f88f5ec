"""The `openai` client for a judge's entry, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import openai
from pydantic import BaseModel

from kvfidelity.errors import UserError
from kvfidelity.judges.address import url_fault, variable_fault
from kvfidelity.judges.connection_errors import client_fault, connection_remedy
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.requests import Answer, Limits

#: The client itself retries 408, 409, 429, 5xx and broken connections: with exponential backoff and
#: jitter, or after `retry-after` if that is at most two minutes.
RETRIES = 8
HIDDEN = "[key]"


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
        azure = entry["api"] == "azure"
        #: The path in a batch's requests; Azure's has no version.
        self.batch_path = "/chat/completions" if azure else "/v1/chat/completions"
        self._key = _api_key(judge, entry["api_key_env"])
        options: dict[str, Any] = {
            "api_key": self._key or "none",
            "max_retries": RETRIES,
            "timeout": limits.timeout_s,
        }
        self.client: openai.OpenAI
        try:
            if azure:
                version = entry["api_version"]
                self.client = openai.AzureOpenAI(
                    azure_endpoint=str(self.url), api_version=version, **options
                )
            else:
                self.client = openai.OpenAI(base_url=self.url, **options)
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
        text = f"{type(error).__name__}: {self.without_key(' '.join(str(error).split()))[:300]}"
        if isinstance(error, openai.BadRequestError) and "response_format" in str(error):
            text += " (set `answer_format: object` or `text` for this judge)"
        return text

    def answer(
        self, completion: Mapping[str, Any], usd: Callable[[int, int], float] | None
    ) -> Answer:
        """An answer from a chat completion in JSON types.

        Args:
            usd: returns dollars for prompt and answer tokens; None if prices are unknown.

        Raises:
            ValueError: it is not a chat completion.
        """
        try:
            choice = completion["choices"][0]
            message, usage = choice["message"], completion.get("usage") or {}
            content, refusal = message.get("content"), message.get("refusal")
            finish = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError("no chat completion came back") from None
        prompt, answered = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Answer(
            content=None if content is None else self.without_key(str(content)),
            refusal=None if refusal is None else self.without_key(str(refusal)),
            finish_reason=finish,
            prompt_tokens=prompt,
            completion_tokens=answered,
            usd=usd(prompt, answered)
            if usd and prompt is not None and answered is not None
            else None,
        )


def completion_fields(completion: object) -> dict[str, Any]:
    """A completion of the client in JSON types; empty if it is something else."""
    return completion.model_dump(mode="json") if isinstance(completion, BaseModel) else {}


def retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds to wait as the endpoint says; None if it gives no number."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None


def _address_faults(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    checks = {"base_url": url_fault, "api_key_env": variable_fault}
    for key, check in checks.items():
        if fault := check(entry[key]):
            yield key, fault


def _api_key(judge: str, variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"judge {judge} needs its key in the environment variable {variable}: set it, or take "
            "the judge out of `judging` (`api_key_env: null` is for an endpoint that needs no key)"
        )
    return key


def _remedy(error: Exception, model: str) -> str | None:
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return "set the environment variable that `api_key_env` names to a key that may use it"
        case openai.NotFoundError():
            return f"it has no {model!r}; correct `model` or `base_url`"
        case openai.RateLimitError(code="insufficient_quota"):
            return "the account has no credit left; answers so far are kept, run again to continue"
        case openai.RateLimitError():
            return "its rate limit persists; lower `concurrency`, or set `tokens_per_minute`"
        case openai.APITimeoutError():
            return None
    return None
