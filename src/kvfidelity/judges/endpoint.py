"""The `openai` client for a judge's entry, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import openai
from pydantic import BaseModel

from kvfidelity.errors import UserError
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.requests import Answer, Limits

#: The client tries 408, 409, 429, 5xx and broken connections again by itself: exponential backoff
#: with jitter, or after what `retry-after` says if that is at most two minutes.
RETRIES = 8
HIDDEN = "[key]"


class Endpoint:
    """Where a judge's model is.

    Args:
        judge: its name in the config. entry: its config entry. limits: for the time-out.

    Raises:
        UserError: the environment variable that shall hold the key is not set.
    """

    def __init__(self, judge: str, entry: Mapping[str, Any], limits: Limits) -> None:
        entry = with_defaults(entry)
        self.judge, self.model = judge, str(entry["model"])
        self.url = entry["base_url"]
        azure = entry["api"] == "azure"
        #: What a batch's requests are for; Azure has it without the version.
        self.batch_path = "/chat/completions" if azure else "/v1/chat/completions"
        self._key = _api_key(judge, entry["api_key_env"])
        options: dict[str, Any] = {
            "api_key": self._key or "none",
            "max_retries": RETRIES,
            "timeout": limits.timeout_s,
        }
        self.client: openai.OpenAI
        if azure:
            version = entry["api_version"]
            self.client = openai.AzureOpenAI(
                azure_endpoint=str(self.url), api_version=version, **options
            )
        else:
            self.client = openai.OpenAI(base_url=self.url, **options)

    def without_key(self, text: str) -> str:
        """A text from the endpoint without the key, should it hold it."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def fatal_error(self, error: Exception) -> UserError | None:
        """What an error means that every other request would meet too; None if it is this one's."""
        remedy = _remedy(error, self.model)
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
        """An answer out of a chat completion's plain form.

        Args:
            usd: gives dollars for prompt and answer tokens, None if prices are unknown.

        Raises:
            ValueError: it has not the form of one.
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
    """A completion as the client gives it in JSON's types; empty if it is none."""
    return completion.model_dump(mode="json") if isinstance(completion, BaseModel) else {}


def retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the endpoint asks to wait; None if it does not say a number."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None


def _api_key(judge: str, variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"judge {judge} needs its key in the environment variable {variable}: set it, or take "
            "the judge out of `judging` (`api_key_env: null` is for an endpoint that asks for none)"
        )
    return key


def _remedy(error: Exception, model: str) -> str | None:
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return "set the environment variable that `api_key_env` names to a key that may use it"
        case openai.NotFoundError():
            return f"it has no {model!r}; correct `model` or `base_url`"
        case openai.RateLimitError(code="insufficient_quota"):
            return "the account has nothing left; what was answered is kept, run again to go on"
        case openai.RateLimitError():
            return "its rate limit holds on; lower `concurrency`, or set `tokens_per_minute`"
        case openai.APITimeoutError():
            return None
        case openai.APIConnectionError() if "ConnectError" in type(error.__cause__).__name__:
            return "nobody listens there; start the server or correct `base_url`, and run again"
    return None
