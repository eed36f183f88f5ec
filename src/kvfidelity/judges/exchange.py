"""One request over HTTP: its whole answer is bounded in time and size, whatever a server sends.

Timeouts of an HTTP library bound the silence between two bytes, so an answer that drips never ends.
Here one deadline holds for connection, headers and body, so the exchange is a cancellable task. A
library also reads on after the end of a packed body, so bodies are unpacked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import weakref
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import openai

T = TypeVar("T")

#: Bytes of an answer at most, and of a file of answers, 10,000 for each request of a full batch.
MAX_BODY_BYTES, MAX_FILE_BYTES = 4_000_000, 500_000_000
#: Bytes a second of a file that is sent or received, slower than which it is given up.
SLOWEST_FILE = 50_000
#: Further tries of a call of the Batch API whose answer was lost.
LOST_RETRIES = 2
#: What is unpacked here; no other form is asked for.
PACKED = {"gzip", "x-gzip", "deflate"}
#: Unpacked bytes at a time.
PIECE = 1 << 20
#: Seconds for a connection, as a share of all: one that is not made is told from a lost answer.
CONNECT_SHARE = 0.9


@dataclass(frozen=True)
class Received:
    """An answer of a server.

    content: its body, as far as it came. broken: why the body did not end; None if it did.
    too_large: the rest was not read.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    broken: str | None = None
    too_large: bool = False

    @property
    def text(self) -> str:
        """The body as text, whatever it holds; JSON tells its encoding by its first bytes."""
        return self.content.decode(json.detect_encoding(self.content), "replace")


class Exchanges:
    """Asks an endpoint for chat completions, or calls its Batch API; threads may share it.

    Args:
        connect: makes the client around one of the HTTP library.
        timeout_s: for a whole exchange.
    """

    def __init__(self, connect: Callable[[Any], openai.AsyncOpenAI], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # A redirect is said, not followed: with the key, to wherever it leads.
        http = _HttpClient(
            follow_redirects=False,
            timeout=openai.Timeout(timeout_s, connect=CONNECT_SHARE * timeout_s),
            headers={"Accept-Encoding": "gzip, deflate"},
            event_hooks={"response": [_read_error]},
        )
        http.timeout_s = timeout_s
        self._client = connect(http)
        weakref.finalize(self, _close, http).atexit = False

    def ask(self, body: Mapping[str, Any]) -> Received:
        """The answer to one request.

        Raises:
            openai.APIConnectionError: no answer began. TimeoutError: it did not end in time.
        """
        return _finished(_ask(self._client, body, self._timeout_s))

    def call(self, request: Callable[[openai.AsyncOpenAI], Awaitable[T]], *, retries: int = 0) -> T:
        """What a call of the client gives; each of its tries is bounded, like `ask`.

        The deadline is later by the time that a file of its size takes at `SLOWEST_FILE`.

        Args:
            request: the call. retries: how often it may be repeated where that may help.

        Raises:
            openai.OpenAIError: of the client; AnswerLostError among them.
        """

        async def called() -> T:
            client = self._client.with_options(max_retries=retries)
            for _ in range(min(retries, LOST_RETRIES)):
                with contextlib.suppress(AnswerLostError):
                    return await request(client)
            return await request(client)

        return _finished(called())


class AnswerLostError(openai.APIConnectionError):
    """An answer that took too long or broke off."""


class _HttpClient(openai.DefaultAsyncHttpxClient):
    """Reads an answer, unless it is streamed, within bounds of time and size."""

    timeout_s: float

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        if stream:  # read by `_ask`, within its own deadline
            return await super().send(request, stream=True, **options)
        try:
            response, received = await self._receive(request, **options)
        except TimeoutError:
            late = "the answer took longer than `timeout_s`"
            raise AnswerLostError(message=late, request=request) from None
        if received.broken and response.is_success:
            raise AnswerLostError(message=received.broken, request=request)
        headers = [
            (name, value)
            for name, value in response.headers.items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        made = type(response)(received.status, headers=headers, content=received.content)
        made.request = request
        return made

    async def _receive(self, request: Any, **options: Any) -> tuple[Any, Received]:
        sent = int(request.headers.get("Content-Length", 0))
        is_file = request.method == "GET" and request.url.path.endswith("/content")
        async with asyncio.timeout(self.timeout_s + sent / SLOWEST_FILE) as deadline:

            def later(size: int) -> None:
                deadline.reschedule((deadline.when() or 0.0) + size / SLOWEST_FILE)

            try:
                response = await super().send(request, stream=True, **options)
                most = MAX_FILE_BYTES if is_file else MAX_BODY_BYTES
                return response, await _read(response, most, later)
            except _StatusError as error:
                return error.response, error.received


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives, run by the loop of all exchanges."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
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
        raise _StatusError(response, await _read(response))


async def _read(
    response: Any,
    most: int = MAX_BODY_BYTES,
    progress: Callable[[int], None] = lambda _: None,
) -> Received:
    """Read a body, packed or not, to its end or to `most` bytes."""
    content = bytearray()
    packed = response.headers.get("Content-Encoding", "").strip().lower() in PACKED
    # Either form, told by its first bytes.
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32) if packed else None
    broken = None
    try:
        async for part in response.aiter_raw():
            progress(len(part))
            if unpacker is None:
                content += part
            else:
                while part and len(content) <= most:
                    content += unpacker.decompress(part, PIECE)
                    part = unpacker.unconsumed_tail
                if unpacker.eof:  # what follows is not part of the body
                    break
            if len(content) > most:
                break
        else:
            if unpacker is not None:
                broken = "the packed answer breaks off"
    except Exception as error:  # noqa: BLE001 - of the HTTP library of the client
        words = " ".join(str(error).split())[:200]
        broken = f"{type(error).__name__}: {words or 'the answer broke off'}"
    too_large = len(content) > most
    kept = bytes(content[:most])
    return Received(response.status_code, response.headers, kept, broken, too_large)


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

    def __init__(self, response: Any, received: Received) -> None:
        super().__init__(f"status {received.status}")
        self.response, self.received = response, received
