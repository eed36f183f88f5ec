"""An answer is bounded in time and size, and one that breaks off is no crash."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges import batch_api, exchange, online
from kvfidelity.judges.endpoint import Endpoint, Trouble
from kvfidelity.judges.exchange import MAX_BODY_BYTES, Exchanges
from kvfidelity.judges.requests import Answer, Limits, Request
from kvfidelity.judges.store import AnswerStore
from tests.judges.server import QuietServer, Server, completion, good
from tests.judges.test_answers import FINE, says
from tests.judges.test_llm import _key as _key
from tests.judges.test_llm import judge, row
from tests.waiting import LIMIT_S

PRICED = {"price": {"input": 1000.0, "output": 1000.0}}
REQUEST = Request({"model": "m", "messages": [], "max_tokens": 9})
JSON = b"Content-Type: application/json\r\n"


class RawServer(QuietServer):
    """Sends the bytes that `answer(done)` yields, to each connection; counts connections."""

    def __init__(self, answer: Callable[[threading.Event], Iterator[bytes]]) -> None:
        self.done = threading.Event()
        self.connections = 0
        super().__init__(("127.0.0.1", 0), None)  # type: ignore[arg-type]
        self._answer = answer
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        read_request(request)
        for part in self._answer(self.done):
            request.sendall(part)

    def __enter__(self) -> RawServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.shutdown()
        self.server_close()


def read_request(connection: socket.socket) -> None:
    """Read all of a request: a connection that is closed with unread bytes loses its answer."""
    with connection.makefile("rb") as lines:
        size = 0
        while (line := lines.readline()).strip():
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        lines.read(size)


def dripped(start: bytes, drop: bytes) -> Callable[[threading.Event], Iterator[bytes]]:
    """A start, and then one more drop every now and then, without an end."""

    def answer(done: threading.Event) -> Iterator[bytes]:
        yield start
        while not done.wait(0.05):
            yield drop

    return answer


def whole(content: bytes) -> Callable[[threading.Event], Iterator[bytes]]:
    """An answer in one piece. It says that the connection ends, as `RawServer` ends each: a client
    that did not know could send its next request into it."""
    line, found, rest = content.partition(b"\r\n")
    if found and line.startswith(b"HTTP/1.1 "):
        content = line + b"\r\nConnection: close\r\n" + rest
    return lambda _: iter([content])


def endpoint(url: str, timeout_s: float) -> Endpoint:
    entry = {"model": "m", "base_url": url, "api_key_env": None}
    return Endpoint("mine", entry, Limits(timeout_s=timeout_s))


#: Beginnings of answers, and what then comes without an end.
ENDLESS = [
    (b"", b""),
    (b"", b"H"),
    (b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n"),
    (b"HTTP/1.1 200 OK\r\nX-A: ", b"1"),
    (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\n", b" "),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    (b"HTTP/1.1 400 Bad\r\nContent-Length: 99999\r\n\r\n", b" "),
    (b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    (b"HTTP/1.1 302 Found\r\nContent-Length: 99999\r\n\r\n", b" "),
]


def test_an_answer_that_never_ends_is_given_up() -> None:
    """Without a bound on the whole exchange, this test would not end."""

    def ask(start: bytes, drop: bytes) -> Answer | Trouble:
        with RawServer(dripped(start, drop)) as server:
            return endpoint(server.url, 3.0).ask(REQUEST, None)

    with ThreadPoolExecutor(len(ENDLESS)) as pool:  # each of them takes that long
        found = list(pool.map(ask, *zip(*ENDLESS, strict=True)))
    for one in found:
        assert isinstance(one, Trouble) and one.lost and one.passing, one


#: Each call of the Batch API.
CALLS: dict[str, Callable[[Exchanges], object]] = {
    "upload": lambda api: batch_api.upload_file(api, "x.jsonl", b"{}\n"),
    "create": lambda api: batch_api.create_batch(api, "/v1/chat/completions", "x", "file"),
    "list": lambda api: batch_api.find_batch(api, "x", "file"),
    "look": lambda api: batch_api.batch_state(api, "x"),
    "download": lambda api: batch_api.file_content(api, "x"),
}


def test_no_call_of_the_batch_api_waits_for_an_answer_that_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a bound on the whole exchange, this test would not end."""
    monkeypatch.setattr(batch_api, "RETRIES", 0)

    def ask(call: str, answer: tuple[bytes, bytes]) -> tuple[str, bytes, type[Exception], int]:
        with RawServer(dripped(*answer)) as server:
            try:
                CALLS[call](endpoint(server.url, 3.0).exchanges)
            except Exception as error:  # noqa: BLE001 - any of them is looked at
                return call, answer[0], type(error), server.connections
        raise AssertionError("it was answered")

    every = [(call, answer) for call in CALLS for answer in ENDLESS]
    with ThreadPoolExecutor(len(every)) as pool:
        found = list(pool.map(ask, *zip(*every, strict=True)))
    for call, start, error, connections in found:
        assert issubclass(error, openai.APIConnectionError), (call, start, error)
        assert connections == 1


def test_a_file_that_keeps_coming_may_take_longer_than_a_short_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its size is not known beforehand, so its speed is what is bounded."""
    monkeypatch.setattr(exchange, "SLOWEST_FILE", 1)  # a second for each byte that came

    def answer(done: threading.Event) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n"
        for _ in range(40):
            done.wait(0.05)
            yield b"x"

    with RawServer(answer) as server:
        assert batch_api.file_content(endpoint(server.url, 1.0).exchanges, "x") == 40 * b"x"


def test_a_file_of_answers_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came is read, so its last line is broken and answers are lacking."""
    monkeypatch.setattr(exchange, "MAX_FILE_BYTES", 3_000_000)

    def answer(done: threading.Event) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n"
        while not done.is_set():
            yield b"x" * 1_000_000

    with RawServer(answer) as server:
        content = batch_api.file_content(endpoint(server.url, LIMIT_S).exchanges, "x")
    assert len(content) == 3_000_000


@pytest.mark.parametrize("status", [b"400 Bad", b"422 No", b"500 Err", b"502 Bad"])
@pytest.mark.parametrize(
    "rest",
    [
        b'Content-Length: 1000\r\n\r\n{"error"',
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"err\r\n',
        b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\nno gzip!",
        b"Content-Encoding: deflate\r\nContent-Length: 8\r\n\r\nno gzip!",
    ],
)
def test_an_error_that_breaks_off_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: bytes, rest: bytes
) -> None:
    monkeypatch.setattr(online, "FIRST_PAUSE_S", 0.001)
    with RawServer(whole(b"HTTP/1.1 " + status + b"\r\n" + JSON + rest)) as server:
        given = {"base_url": server.url}
        if status.startswith(b"422"):  # which means the same for each request
            with pytest.raises(UserError, match="it refuses the request"):
                judge(server, tmp_path, **given).judge([row(0)])  # type: ignore[arg-type]
        else:
            [verdict] = judge(server, tmp_path, **given).judge([row(0)])  # type: ignore[arg-type]
            assert verdict.status == "failed" and status[:3].decode() in (verdict.reason or "")
        assert server.connections == (1 if status.startswith(b"422") else 3)


@pytest.mark.parametrize("status", [b"401 No", b"404 None"])
def test_a_status_that_every_request_gets_is_enough_without_words(
    tmp_path: Path, status: bytes
) -> None:
    cut = b"HTTP/1.1 " + status + b"\r\nContent-Length: 1000\r\n\r\nx"
    with RawServer(whole(cut)) as server, pytest.raises(UserError, match=status[:3].decode()):
        judge(server, tmp_path).judge([row(0), row(1)])  # type: ignore[arg-type]
    assert server.connections == 1


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("status", ["200 OK", "400 Bad", "503 Busy"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_more_is_read_than_an_answer_may_have(status: str, packed: bool) -> None:
    """The server would send without end."""
    part = b"x" * 1_000_000
    encoding = "Content-Encoding: gzip\r\n" if packed else ""
    head = f"HTTP/1.1 {status}\r\n{encoding}Transfer-Encoding: chunked\r\n\r\n".encode()

    def answer(done: threading.Event) -> Iterator[bytes]:
        yield head
        packer = zlib.compressobj(wbits=31)  # gzip
        while not done.is_set():
            data = part
            if packed:
                data = packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
            yield f"{len(data):x}\r\n".encode() + data + b"\r\n"

    with RawServer(answer) as server:
        found = endpoint(server.url, LIMIT_S).ask(REQUEST, None)
    if status.startswith("200"):
        assert isinstance(found, Answer)
        assert found.problem == f"the answer has more than {MAX_BODY_BYTES} bytes"
    else:
        assert isinstance(found, Trouble) and status[:3] in found.reason


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("status", ["200 OK", "400 Bad"])
@pytest.mark.parametrize("more", ["junk", "members"])
def test_nothing_is_read_after_a_packed_answer(status: str, more: str) -> None:
    """The server would send without end."""
    body = json.dumps(says(FINE)).encode()

    def answer(done: threading.Event) -> Iterator[bytes]:
        yield f"HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\n\r\n".encode()
        yield gzip.compress(body)
        after = b"\0" * 1_000_000 if more == "junk" else gzip.compress(b" " * 1_000_000)
        while not done.is_set():
            yield after

    with RawServer(answer) as server:
        found = endpoint(server.url, LIMIT_S).ask(REQUEST, None)
    if status.startswith("200"):
        assert isinstance(found, Answer) and found.content == FINE
    else:
        assert isinstance(found, Trouble) and "400" in found.reason


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_packed_answer_is_read(pack: Callable[[bytes], bytes]) -> None:
    body = pack(json.dumps(says(FINE)).encode())
    name = b"gzip" if pack is gzip.compress else b"deflate"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    with RawServer(whole(head % (name, len(body)) + body)) as server:
        found = endpoint(server.url, LIMIT_S).ask(REQUEST, None)
    assert isinstance(found, Answer) and found.content == FINE


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_an_answer_in_any_encoding_of_json_is_read(encoding: str) -> None:
    body = json.dumps(says('{"reason": "caf\u00e9", "score": 8}'), ensure_ascii=False)
    content = body.encode(encoding)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content)
    with RawServer(whole(head + content)) as server:
        found = endpoint(server.url, LIMIT_S).ask(REQUEST, None)
    assert isinstance(found, Answer) and "caf\u00e9" in (found.content or "")


ANSWER = json.dumps(says(FINE)).encode()
#: Answers that are no HTTP, or none that was asked for.
ODD: dict[str, bytes] = {
    "an event stream": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    b"data: [DONE]\n\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "an empty answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    "no headers": b"hello\r\n",
    "bytes": b"\0\xff\0\r\n\r\n",
    "a header without an end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length below zero": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "a chunk without a size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}",
    "a chunk beyond any size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"F" * 20
    + b"\r\n{}",
    "a header with a NUL": b"HTTP/1.1 200 OK\r\nX-\0: a\r\nContent-Length: 2\r\n\r\n{}",
    "words before the answer": b"HTTP/1.1 200 OK\r\n\r\n)]}'\n" + ANSWER,
    "words after the answer": b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER + b"x",
    "two answers": b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER + b"\n" + ANSWER,
    "a packed answer without a byte": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_answer_stops_in_one_line_and_counts_as_what_it_may_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(online, "FIRST_PAUSE_S", 0.001)
    with RawServer(whole(ODD[name])) as server:
        with pytest.raises(UserError, match="3 requests got this and none was answered") as caught:
            judge(server, tmp_path, pace=PRICED).judge(  # type: ignore[arg-type]
                [row(turn) for turn in range(9)]
            )
        assert server.connections in (3, 9)  # what may have been lost is tried three times
        spent = AnswerStore(tmp_path).spent("mine")
    assert "\n" not in str(caught.value)
    assert spent > 0.1 * server.connections


def test_a_redirect_gets_no_request_to_the_other_host(tmp_path: Path) -> None:
    with RawServer(whole(b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER)) as other:
        for status in (b"301", b"302", b"303", b"307", b"308"):
            to = b"HTTP/1.1 %s Moved\r\nLocation: %s\r\n\r\n" % (status, other.url.encode())
            with RawServer(whole(to)) as server, pytest.raises(UserError, match="it redirects to"):
                judge(server, tmp_path).judge([row(0), row(1)])  # type: ignore[arg-type]
            assert server.connections == 1
    assert other.connections == 0


@pytest.mark.parametrize(
    "told",
    ["1e9", "-5", "nan", "inf", "9" * 5000, "Wed, 21 Oct 2999 07:28:00 GMT", "1,000", "0x10", ""],
)
def test_an_absurd_retry_after_makes_nobody_wait_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(online.time, "sleep", pauses.append)
    body = b"HTTP/1.1 429 No\r\nRetry-After: %s\r\nContent-Length: 2\r\n\r\n{}" % told.encode()
    with RawServer(whole(body)) as server, pytest.raises(UserError, match="rate limit persists"):
        judge(server, tmp_path).judge([row(0), row(1)])  # type: ignore[arg-type]
    assert min(pauses) >= 0 and max(pauses) <= online.MAX_WAIT_S
    assert sum(pauses) < 11 * online.MAX_WAIT_S


def test_an_answer_that_is_too_large_is_paid_once_and_kept(tmp_path: Path) -> None:
    _, _, large = completion(FINE + " " * MAX_BODY_BYTES)
    with Server(lambda number, _: (200, {}, large) if number == 0 else good()) as server:
        found = judge(server, tmp_path, pace=PRICED).judge([row(0), row(1)])
        assert judge(server, tmp_path, pace=PRICED).judge([row(0), row(1)]) == found
    assert sorted(verdict.status for verdict in found) == ["failed", "ok"]
    assert len(server.requests) == 2
    assert 0.099 < sum(verdict.possible_usd or 0 for verdict in found) < 0.5


@pytest.mark.parametrize(
    "twice",
    [
        ('"usage": ', '"usage": {"prompt_tokens": 1}, "usage": '),
        ('"id": "x"', '"id": "x", "id": "y"'),
        ('"finish_reason": "stop"', '"finish_reason": "length", "finish_reason": "stop"'),
        ('"role": "assistant"', '"role": "user", "role": "assistant"'),
    ],
)
def test_a_key_that_the_envelope_gives_twice_loses_no_answer(
    tmp_path: Path, twice: tuple[str, str]
) -> None:
    text = json.dumps(says(FINE)).replace(*twice)
    assert twice[1] in text
    with Server(lambda *_: (200, {}, text.encode())) as server:
        [verdict] = judge(server, tmp_path, pace=PRICED).judge([row(0)])
    assert verdict.score == 8 and verdict.cost_usd == pytest.approx(0.12)


def test_exchanges_work_where_an_event_loop_runs() -> None:
    """As in a notebook."""
    import asyncio

    async def ask(url: str) -> Any:
        return endpoint(url, LIMIT_S).ask(REQUEST, None)

    with Server(lambda *_: good(4)) as server:
        found = asyncio.run(ask(server.url))
    assert isinstance(found, Answer) and "4" in (found.content or "")


def test_threads_that_ask_first_at_the_same_time_share_one_loop() -> None:
    """With a loop each, the answer of one was lost, and paid twice."""
    exchange._made_loop.cache_clear()
    waiting = threading.Barrier(16)

    def loop(_: int) -> object:
        waiting.wait(LIMIT_S)
        return exchange._loop()

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(loop, range(16)))) == 1


def test_no_connection_stays_open() -> None:
    closed: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.settimeout(LIMIT_S)
            closed.append(connection.recv(1))

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint(url, LIMIT_S).ask(REQUEST, None)
        thread.join(LIMIT_S)
    assert closed == [b""]
