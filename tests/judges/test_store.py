"""The verdict store: nothing that was paid for is lost, with several writers and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvfidelity.judges import store as store_module
from kvfidelity.judges.journal import Journal
from kvfidelity.judges.locks import Locks
from kvfidelity.judges.requests import Answer, Failure, Limits
from kvfidelity.judges.store import AnswerStore, Batch, CapReachedError
from tests.waiting import LIMIT_S


def answer(content: str = "x", usd: float | None = None, tokens: int = 10) -> Answer:
    return Answer(content, None, "stop", tokens, 0, usd)


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


WRITE = """
import sys
from pathlib import Path
from kvfidelity.judges.requests import Answer
from kvfidelity.judges.store import AnswerStore
store = AnswerStore(Path(sys.argv[1]))
print("started", flush=True)
for number in range(int(sys.argv[3])):
    answer = Answer("y" * 5000, None, "stop", 1, 1)
    store.put(f"{sys.argv[2]}-{number}", answer, "judge", "model")
    print(number, flush=True)
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [script(WRITE, tmp_path, name, 40) for name in "abcd"]
    for writer in writers:
        writer.communicate(timeout=LIMIT_S)
    assert [writer.returncode for writer in writers] == [0] * 4
    kept = dict(AnswerStore(tmp_path).answers())
    assert set(kept) == {f"{name}-{n}" for name in "abcd" for n in range(40)}


def test_what_was_reported_as_kept_survives_a_kill(tmp_path: Path) -> None:
    with script(WRITE, tmp_path, "a", 10_000) as writer:
        assert writer.stdout is not None
        seen = [next(writer.stdout) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        seen += writer.stdout.readlines()
    kept = dict(AnswerStore(tmp_path).answers())
    assert {f"a-{line.strip()}" for line in seen if line.strip().isdigit()} <= set(kept)


def test_half_a_line_left_by_a_kill_is_no_answer(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.put("a", answer("1"), "judge", "model")
    [file] = tmp_path.glob("*.jsonl")
    with file.open("ab") as handle:
        handle.write(b'{"key": "b", "at": 0, "ans')
    other = AnswerStore(tmp_path)
    assert other.get("a") == answer("1") and other.get("b") is None
    other.put("c", answer("3"), "judge", "model")
    assert AnswerStore(tmp_path).get("c") == answer("3")
    assert store.get("c") == answer("3")
    assert len(file.read_bytes().splitlines()) == 3


def test_a_machine_reads_the_files_of_all_and_writes_only_its_own(tmp_path: Path) -> None:
    AnswerStore(tmp_path / "here").put("a", answer("1"), "judge", "model")
    AnswerStore(tmp_path / "there").put("b", answer("2"), "judge", "model")
    [theirs] = (tmp_path / "there").glob("*.jsonl")
    copied = tmp_path / "here/ffffffff.jsonl"
    copied.write_bytes(theirs.read_bytes())
    before = copied.read_bytes()
    store = AnswerStore(tmp_path / "here")
    assert store.get("b") == answer("2")
    store.put("c", answer("3"), "judge", "model")
    assert copied.read_bytes() == before


def test_of_two_answers_the_first_counts_and_an_answer_beats_a_failure(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.put_failure("a", Failure("expired"))
    assert store.get("a") == Failure("expired")
    store.put("a", answer("first"), "judge", "model")
    store.put("a", answer("second"), "judge", "model")
    assert AnswerStore(tmp_path).get("a") == answer("first")


def test_text_of_any_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    strange = "line\u2028two\n\x00\ud800 \N{GRINNING FACE}"
    AnswerStore(tmp_path).put("a", answer(strange), "judge", "model")
    assert AnswerStore(tmp_path).get("a") == answer(strange)


def test_threads_share_flushes_and_each_waits_for_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Locks(tmp_path / "locks"))

    def write(name: int) -> None:
        for number in range(20):
            journal.append({"name": name, "number": number})
            lines = b"".join(file.read_bytes() for file in tmp_path.glob("*.jsonl"))
            assert f'{{"name": {name}, "number": {number}}}'.encode() in lines

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(journal.read_new())) == 160
    assert list(journal.read_new()) == []


HOLD = """
import sys, time
from pathlib import Path
from kvfidelity.judges.locks import Locks
locks = Locks(Path(sys.argv[1]))
locks.acquire("a")
print("held", flush=True)
time.sleep(300)
"""


def test_a_lock_keeps_others_out_until_its_process_is_killed(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "locks")
    with script(HOLD, tmp_path / "locks") as holder:
        assert holder.stdout is not None and next(holder.stdout) == "held\n"
        assert not locks.acquire("a", wait=False)
        assert locks.acquire("b", wait=False)
        os.kill(holder.pid, signal.SIGKILL)
    assert locks.acquire("a")
    assert not locks.acquire("a", wait=False)  # nor another thread of the same process
    locks.release("a")
    assert locks.acquire("a", wait=False)


def test_spending_stops_below_the_cap_and_goes_on_once_it_is_raised(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    limits = Limits(max_usd=1.0)
    for number in range(2):
        call = store.start_call("judge", "model", 10, 0.5, limits)
        store.put(str(number), answer(usd=0.4), "judge", "model", call)
    assert store.spent("judge") == pytest.approx(0.8)
    with pytest.raises(CapReachedError):
        store.start_call("judge", "model", 10, 0.5, limits)
    assert store.start_call("another judge", "model", 10, 0.5, limits)
    assert AnswerStore(tmp_path).start_call("judge", "model", 10, 0.5, Limits(max_usd=1.5))


def test_a_call_in_flight_counts_at_its_highest_and_one_that_failed_not(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    limits = Limits(max_usd=1.0)
    lost = store.start_call("judge", "model", 10, 0.7, limits)
    failed = store.start_call("judge", "model", 10, 0.2, limits)
    store.end_call(failed)
    assert lost and AnswerStore(tmp_path).spent("judge") == pytest.approx(0.7)


def test_an_endpoint_that_counts_nothing_does_not_get_round_the_cap(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    call = store.start_call("judge", "model", 10, 0.7, Limits(max_usd=1.0))
    store.put("a", answer(usd=None), "judge", "model", call)
    assert store.spent("judge") == pytest.approx(0.7)


def test_tokens_per_minute_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(store_module.time, "sleep", sleep)
    store, limits = AnswerStore(tmp_path), Limits(tokens_per_minute=100)
    starts = []
    for number in range(6):
        call = store.start_call("judge", "model", 40, 0.0, limits)
        starts.append(now[0] - 1000)
        store.put(str(number), answer(tokens=30), "judge", "model", call)
    # 30 each are used in the end, so three fit into a minute if the third may start at 40.
    assert [round(at) for at in starts] == [0, 0, 0, 60, 60, 60]
    now[0] += 60
    assert store.start_call("judge", "model", 500, 0.0, limits)  # one alone always fits


def test_an_ended_batch_is_closed_whichever_machine_wrote_it_down(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    first = Batch("one", "judge", "model", ("a", "b"), None)
    store.note_batch(first)
    store.note_batch(Batch("two", "judge", "model", ("c",), None, "batch_2"))
    assert [batch.name for batch in AnswerStore(tmp_path).open_batches("judge", "here")] == [
        "one",
        "two",
    ]
    [file] = tmp_path.glob("*.jsonl")
    (tmp_path / "00000000.jsonl").write_text('{"batch_ended": "one"}\n')
    assert [batch.id for batch in AnswerStore(tmp_path).open_batches("judge", "here")] == [
        "batch_2"
    ]
    assert file.exists()
