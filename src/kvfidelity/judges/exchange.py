"""One request over HTTP: its whole answer is bounded in time and size, whatever a server sends.

Timeouts of an HTTP library bound the silence between two bytes, so an answer that drips never ends.
Here one deadline holds for connection, headers and body, so the exchange is a cancellable task.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import openai

#: Bytes of an answer at most.
MAX_BODY_BYTES = 4_000_000
#: Seconds for a connection, as a share of all: one that is not made is told from a lost answer.
CONNECT_SHARE = 0.9


@dataclass(frozen=True)
class Received:
    """An answer of a server.

    text: its body, as far as it came. broken: why the body did not end; None if it did.
    too_large: the rest, beyond `MAX_BODY_BYTES`, was not read.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    broken: str | None = None
    too_large: bool = False


class Exchanges:
    """Asks an endpoint for chat completions; threads may share it.

    Args:
        connect: makes the client around one of the HTTP library.
        timeout_s: for a whole exchange.
    """

    def __init__(self, connect: Callable[[Any], openai.AsyncOpenAI], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # A redirect is said, not followed: with the key, to wherever it leads.
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,
            timeout=openai.Timeout(timeout_s, connect=CONNECT_SHARE * timeout_s),
            event_hooks={"response": [_read_error]},
        )
        self._client = connect(http)
        weakref.finalize(self, _close, http).atexit = False

    def ask(self, body: Mapping[str, Any]) -> Received:
        """The answer to one request.

        Raises:
            openai.APIConnectionError: no answer began. TimeoutError: it did not end in time.
        """
        sent = _ask(self._client, body, self._timeout_s)
        future = asyncio.run_coroutine_threadsafe(sent, _loop())
        try:
            return future.result()
        finally:
            future.cancel()


async def _ask(client: openai.AsyncOpenAI, body: Mapping[str, Any], timeout_s: float) -> Received:
    async with asyncio.timeout(timeout_s):
        try:
            completions = client.chat.completions.with_streaming_response
            async with completions.create(**body) as response:
                return await _read(response.http_response)
        except Exception as error:
            for link in causes(error):
                if isinstance(link, _StatusError):
                    return link.received
            raise


def _close(http: Any) -> None:
    asyncio.run_coroutine_threadsafe(http.aclose(), _loop())


async def _read_error(response: Any) -> None:
    """Read the body of an error before the client does, which would read all of it."""
    if not response.is_success:
        raise _StatusError(await _read(response))


async def _read(response: Any) -> Received:
    parts: list[bytes] = []
    size = 0
    broken = None
    try:
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                break
    except Exception as error:  # noqa: BLE001 - of the HTTP library of the client
        words = " ".join(str(error).split())[:200]
        broken = f"{type(error).__name__}: {words or 'the answer broke off'}"
    text = b"".join(parts)[:MAX_BODY_BYTES].decode("utf-8", "replace")
    return Received(response.status_code, response.headers, text, broken, size > MAX_BODY_BYTES)


def causes(error: BaseException) -> list[BaseException]:
    """An error and the errors behind it; of several connections that failed, the last."""
    found: BaseException | None = error
    chain: list[BaseException] = []
    while found is not None:
        chain.append(found)
        if isinstance(found, BaseExceptionGroup):
            found = found.exceptions[-1]
        else:
            found = found.__cause__ or found.__context__
    return chain


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all exchanges, in a thread of its own: callers may have one running."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="exchanges", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=_loop.cache_clear)  # its thread is not in a child


class _StatusError(Exception):
    """An answer with another status than success."""

    def __init__(self, received: Received) -> None:
        super().__init__(f"status {received.status}")
        self.received = received
