"""What may have been charged is counted, what was paid for is kept, and nothing is sent twice."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges.requests import Answer, Limits
from kvfidelity.judges.store import AnswerStore
from tests.judges.batch_server import BatchServer
from tests.judges.server import Reply, Server, good
from tests.judges.test_batch import judge as batch_judge
from tests.judges.test_batch import row as batch_row
from tests.judges.test_batch import sent
from tests.judges.test_llm import _key as _key
from tests.judges.test_llm import judge, row
from tests.waiting import LIMIT_S

FULL = os.environ.get("KVFIDELITY_CHAOS") == "full"
FULL_ONLY = "takes a minute: set KVFIDELITY_CHAOS=full"
PRICED = {"price": {"input": 1000.0, "output": 1000.0}}


def test_tries_that_time_out_count_at_their_highest_price(tmp_path: Path) -> None:
    done = threading.Event()

    def behave(number: int, _: Any) -> Reply:
        done.wait(LIMIT_S)
        return good()

    with Server(behave) as server:
        [verdict] = judge(server, tmp_path, pace=PRICED | {"timeout_s": 0.5}).judge([row(0)])
        done.set()
        tries = len(server.requests)
    assert (verdict.status, tries) == ("failed", 3)
    assert "timeout_s" in (verdict.reason or "")
    [usd] = {verdict.possible_usd}
    assert usd and AnswerStore(tmp_path).spent("mine") == pytest.approx(usd)
    assert usd > tries * 0.099  # its answer alone could cost that much


def test_tries_that_may_be_charged_stop_at_the_cap(tmp_path: Path) -> None:
    with (
        Server(lambda *_: (200, {}, None)) as server,
        pytest.raises(UserError, match="are spent, or may be"),
    ):
        judge(server, tmp_path, pace=PRICED | {"max_usd": 1.2}).judge([row(0), row(1)])
    assert 1 <= len(server.requests) <= 2
    assert 0.099 < AnswerStore(tmp_path).spent("mine") <= 1.2


@pytest.mark.parametrize("status", [502, 504, 524])
def test_a_gateway_that_loses_an_answer_may_have_had_it_charged(
    tmp_path: Path, status: int
) -> None:
    lost: Reply = (status, {}, b"<html>bad gateway</html>")
    with Server(lambda number, _: good() if number else lost) as server:
        [verdict] = judge(server, tmp_path, pace=PRICED).judge([row(0)])
    assert verdict.cost_usd == pytest.approx(0.12)
    assert (verdict.possible_usd or 0) > 0.099
    spent = AnswerStore(tmp_path).spent("mine")
    assert spent == pytest.approx(0.12 + (verdict.possible_usd or 0))


@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens": -5, "completion_tokens": 3_000_000_000}]
)
def test_an_answer_without_believable_usage_counts_at_its_highest_price(
    tmp_path: Path, usage: Any
) -> None:
    _, _, raw = good()
    content = json.dumps(json.loads(raw or b"") | {"usage": usage}).encode()
    with Server(lambda *_: (200, {}, content)) as server:
        [verdict] = judge(server, tmp_path, pace=PRICED).judge([row(0)])
    assert (verdict.score, verdict.cost_usd) == (7, None)
    assert AnswerStore(tmp_path).spent("mine") == pytest.approx(verdict.possible_usd)


def kept_line(**changes: Any) -> str:
    store_entry = {"key": "a", "at": 1.0, "judge": "j", "model": "m", "call": None}
    answer = {"content": "x", "refusal": None, "finish_reason": "stop", "prompt_tokens": 1}
    return json.dumps(
        store_entry | {"answer": answer | {"completion_tokens": 1, "usd": 0.5}} | changes
    )


def odd_call(**changes: Any) -> bytes:
    call = {"name": "c", "judge": "k", "model": "m", "at": 1.0, "tokens": 3, "usd": 0.0}
    return json.dumps({"begin": call | changes}).encode() + b"\n"


def odd_batch(**changes: Any) -> bytes:
    batch = {"name": "b", "judge": "k", "model": "m", "keys": ["b"], "call": None}
    return json.dumps({"batch": batch | changes}).encode() + b"\n"


#: Files of a store with the answer to "a", in forms that are read.
READ: dict[str, bytes] = {
    "as written": kept_line().encode() + b"\n",
    "no newline at the end": kept_line().encode(),
    "a byte-order mark": b"\xef\xbb\xbf" + kept_line().encode() + b"\n",
    "Windows line ends": kept_line().encode() + b"\r\n",
    "blank lines": b"\n\n" + kept_line().encode() + b"\n\n",
    "a later version's fields": kept_line(answer={"content": "x", "new": [1]}, more=2).encode(),
    "an earlier version's fields": (
        b'{"key": "a", "at": 1, "judge": "j", "answer": {"content": "x"}}'
    ),
    "odd numbers": kept_line(
        at="yesterday", answer={"content": "x", "usd": "1", "prompt_tokens": -1}
    ).encode(),
    "the same line twice": (kept_line() + "\n").encode() * 2,
    "a damaged line before": b'{"key": "a", "at"\n' + kept_line().encode() + b"\n",
    "a nested line before": b"[" * 9000 + b"\n" + kept_line().encode() + b"\n",
    "a number of 5,000 digits before": b"1" * 5000 + b"\n" + kept_line().encode() + b"\n",
    "bytes that are no text before": b"\xff\xfe\x00\n" + kept_line().encode() + b"\n",
    "an unknown entry before": b'{"of": "version 9"}\n' + kept_line().encode() + b"\n",
    "an odd call before": b'{"begin": {"name": 1}}\n' + kept_line().encode() + b"\n",
    "an odd batch before": b'{"batch": {"keys": 7}}\n' + kept_line().encode() + b"\n",
    "a list before": b"[]\n" + kept_line().encode() + b"\n",
    "NUL bytes before": bytes(512) + b"\n" + kept_line().encode() + b"\n",
    "an answer that is a list before": b'{"key": "a", "answer": [1]}\n' + kept_line().encode(),
    "a number as key before": b'{"key": 7, "answer": {}}\n' + kept_line().encode(),
    "a call of a list before": odd_call(key=["a"]) + kept_line().encode(),
    "a call of nobody before": odd_call(judge=None) + kept_line().encode(),
    "a batch of lists before": odd_batch(keys=[["b"]]) + kept_line().encode(),
    "a batch with a number as id before": odd_batch(id=7) + kept_line().encode(),
    "a call of infinite size": odd_call(tokens=math.inf, usd=math.inf) + kept_line().encode(),
    "a call that cost less than nothing": odd_call(usd=-5, judge="j") + kept_line().encode(),
    "a batch of odd prices": odd_batch(usd=["x", -1], at="yesterday") + kept_line().encode(),
    "an answer that cost less than nothing": kept_line(
        answer={"content": "x", "usd": -5}, max_usd=-5
    ).encode(),
    "an answer of the future": kept_line(at=4e9).encode(),
    "a failure of the same request": (
        b'{"key": "a", "at": 0, "judge": "j", "failure": "x"}\n' + kept_line().encode()
    ),
    "another job's stop": b'{"stop": "k m here", "why": "judge k: no"}\n' + kept_line().encode(),
    "a line that is being written": kept_line().encode() + b'\n{"key": "c", "answ',
}


@pytest.mark.parametrize("name", READ)
def test_a_store_file_is_read_whatever_stands_in_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_bytes(READ[name])
    store = AnswerStore(tmp_path)
    found = store.get("a")
    assert isinstance(found, Answer) and found.content == "x"
    assert store.spent("j") in (0.0, 0.5)
    assert 0 <= store.spent("k") < math.inf
    store.open_batches("k", "here")
    told = capsys.readouterr().err
    assert ("other.jsonl: a line is skipped" in told) == name.endswith("before")
    store.put("b", Answer("y", None, "stop", 1, 1), "j", "m")
    assert AnswerStore(tmp_path).get("b") == Answer("y", None, "stop", 1, 1)


def test_an_answer_in_a_form_of_another_version_is_not_paid_for_again(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(
        '{"key": "a", "at": 1, "judge": "j", "answer": {"v": 9}}\n'
    )
    found = AnswerStore(tmp_path).get("a")
    assert isinstance(found, Answer) and "not read any more" in (found.problem or "")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 4 MB at a folder; skips the test where none can be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_store_gives_its_answers_and_nothing_is_asked(tmp_path: Path) -> None:
    with small_disk(tmp_path), Server(lambda *_: good(5)) as server:
        key = judge(server, tmp_path).request(row(0), []).key
        content = json.dumps({"reason": "x", "score": 5})
        line = kept_line(key=key, answer={"content": content, "finish_reason": "stop"})
        (tmp_path / "other.jsonl").write_text(line + "\n")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        assert judge(server, tmp_path).judge([row(0)])[0].score == 5
        with pytest.raises(UserError, match=r"cannot be written .*nothing is asked"):
            judge(server, tmp_path).judge([row(0), row(1)])
        assert server.requests == []


def test_a_disk_that_fills_up_meanwhile_loses_no_answer(tmp_path: Path) -> None:
    filler = tmp_path / "filler"

    def behave(number: int, _: Any) -> Reply:
        with filler.open("ab", buffering=0) as handle, contextlib.suppress(OSError):
            while number < 40 and handle.write(bytes(4096)):
                pass
        return good()

    with small_disk(tmp_path), Server(behave) as server:
        pace = {"concurrency": 1}
        with pytest.raises(UserError, match="has no room for answers"):
            judge(server, tmp_path, pace=pace).judge([row(turn) for turn in range(40)])
        paid = len(server.requests)
        filler.unlink()
        kept = [outcome for _, outcome in AnswerStore(tmp_path).answers()]
        assert 1 <= paid == len(kept) < 40


@pytest.mark.parametrize("jump", [-1e9, -100.0, 100.0, 1e9])
def test_a_clock_that_jumps_makes_nobody_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    earlier = AnswerStore(tmp_path)
    limits = Limits(tokens_per_minute=100)
    earlier.start_call("judge", "model", 90, 0.0, limits)
    monkeypatch.setattr(time, "time", real)
    waited: list[float] = []
    monkeypatch.setattr("kvfidelity.judges.store.time.sleep", waited.append)
    AnswerStore(tmp_path).start_call("judge", "model", 90, 0.0, limits)
    assert waited == []


@pytest.mark.parametrize(
    "batches", [20, pytest.param(100, marks=pytest.mark.skipif(not FULL, reason=FULL_ONLY))]
)
def test_a_batch_whose_connection_is_cut_at_random_is_never_sent_twice(
    tmp_path: Path, batches: int
) -> None:
    """Each batch is created by a request that may be cut before or after it counts."""
    drawn = random.Random(0)
    twice, answered = [], 0
    for number in range(batches):
        cuts = [drawn.random() < 0.4 for _ in range(4)]
        with CuttingServer(cuts, before=drawn.random() < 0.3) as server:
            store = tmp_path / str(number)
            for _ in range(6):
                try:
                    found = batch_judge(server.url, store, {"poll_s": 0.001}).judge([batch_row(0)])
                except UserError:
                    continue
                answered += found[0].score == 7
                break
            ids = sent(server)
            twice += [number] if len(ids) != len(set(ids)) else []
    assert (twice, answered) == ([], batches)


class CuttingServer(BatchServer):
    """Cuts the connection of the first requests that create batches or look at them.

    before: a creation is cut before the batch is taken, not after.
    """

    def __init__(self, cuts: list[bool], *, before: bool) -> None:
        super().__init__(looks=1)
        self._cuts, self._before = iter([True, *cuts]), before
        handler: Any = self._server.RequestHandlerClass
        post, send = handler.do_POST, handler._send_body
        outer = self

        def do_post(this: BaseHTTPRequestHandler) -> None:
            if this.path.endswith("/batches") and outer._before and next(outer._cuts, False):
                this.close_connection = True
                return
            post(this)

        def send_body(this: Any, body: bytes, kind: str, status: int = 200) -> None:
            creation = this.command == "POST" and this.path.endswith("/batches")
            if creation and not outer._before and next(outer._cuts, False):
                if len(outer.batches) % 2:
                    this.close_connection = True  # no answer at all
                    return
                body, status = b"<html>bad gateway</html>", 502
            send(this, body, kind, status)

        handler.do_POST, handler._send_body = do_post, send_body
