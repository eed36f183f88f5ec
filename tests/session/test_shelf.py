"""Runs that never evict outlive their process, bit for bit and within a bound."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvfidelity.artifacts import TIMINGS
from kvfidelity.cache.scores import History, ScoreBook
from kvfidelity.session.engine import Engine
from kvfidelity.session.prefix import tensorfile
from kvfidelity.session.prefix.bank import PrefixBank
from kvfidelity.session.prefix.full import FullRun, Mark
from kvfidelity.session.prefix.shelf import Shelf
from kvfidelity.session.run import Records, _Run, run_dialogue
from kvfidelity.session.spec import RunSpec
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from ..models.tiny import tiny_llama, tiny_tokenizer
from .test_recall import ASKED, told
from .test_run import BASE, BASELINE, talk

ROOM = 1 << 30


def shelf_of(engine: Engine, folder: Path, room: int = ROOM, **about: str) -> Shelf:
    return Shelf(folder, room, engine, about)


def full_run(engine: Engine, spec: RunSpec = BASE, turns: int = 5) -> FullRun:
    return _Run(engine, talk(turns), spec, lambda event: None)._full_run()


def played(engine: Engine, spec: RunSpec, folder: Path, *, computes: bool = True) -> Records:
    """A process of its own, as far as memory goes; whether it may compute a never evicted run."""
    with pytest.MonkeyPatch.context() as patch:
        if not computes:
            patch.setattr(_Run, "_full_run", lambda self: pytest.fail("it was computed anew"))
        bank = PrefixBank(ROOM, shelf_of(engine, folder))
        return run_dialogue(engine, told(), spec, bank)


def assert_same_records(one: Records, other: Records) -> None:
    for mine, theirs in zip(one, other, strict=True):
        drop = TIMINGS & set(mine.columns)
        assert_frame_equal(mine.drop(drop), theirs.drop(drop), check_exact=True)


def the_file(folder: Path) -> Path:
    [file] = folder.iterdir()
    return file


@pytest.mark.parametrize("recall", [{}, ASKED | {"after_turns": (1, 3, 5), "max_new_tokens": 3}])
@pytest.mark.parametrize("replies", ["reference", "own"])
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("kind", ["streaming_llm", "attention_top", "snapkv"])
@pytest.mark.parametrize("positions", ["rerotated", "stale"])
def test_a_run_that_goes_on_from_disk_is_the_run_that_computed(
    engine: Engine,
    tmp_path: Path,
    kind: str,
    scored: bool,
    replies: str,
    recall: dict[str, Any],
    positions: str,
) -> None:
    spec = dataclasses.replace(
        BASE,
        kind=kind,
        score_every_run=scored,
        replies=replies,
        recall=recall,
        positions=positions,
        at="150tok",
    )
    computed = played(engine, spec, tmp_path)
    taken = played(engine, spec, tmp_path, computes=False)
    assert_same_records(computed, taken)
    assert computed.turns["shared_prefix"].any() and computed.evictions.height


def test_what_the_never_evicted_run_itself_took_and_said_comes_back_whole(
    engine: Engine,
    tmp_path: Path,
) -> None:
    for replies in ("reference", "own"):
        spec = dataclasses.replace(BASELINE, replies=replies, temperature=1.0, seed=3)
        computed = played(engine, spec, tmp_path)
        taken = played(engine, spec, tmp_path, computes=False)
        assert_frame_equal(computed.turns, taken.turns, check_exact=True)


def test_policies_share_what_is_on_disk(
    engine: Engine,
    tmp_path: Path,
) -> None:
    """The baseline computed it; another day another policy goes on from it."""
    played(engine, BASELINE, tmp_path)
    late = played(engine, BASE, tmp_path, computes=False)
    assert_same_records(late, run_dialogue(engine, told(), BASE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["streaming_llm", "snapkv"])
def test_every_bit_of_a_run_comes_back(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    engine = Engine.of(tiny_llama().to(dtype), tiny_tokenizer())
    # Prompts fed in chunks: a key's rotation must not depend on what it was rotated with.
    engine = dataclasses.replace(engine, chunk=13)
    run = full_run(engine, dataclasses.replace(BASE, kind=kind))
    shelf = shelf_of(engine, tmp_path)
    shelf.keep("key", run)
    found = shelf.take("key")
    assert found is not None
    for mine, theirs in zip(run.cache.layers, found.cache.layers, strict=True):
        for name in ("live_keys", "live_values", "rotated_keys"):
            assert_same_bits(getattr(mine, name), getattr(theirs, name))
    assert_same_book(run.cache.scores, found.cache.scores)
    for name in ("position", "token_index"):
        assert torch.equal(getattr(run.cache.ledger, name), getattr(found.cache.ledger, name))
    for name in ("tokens_seen", "next_position", "evictions", "mode"):
        assert getattr(run.cache.ledger, name) == getattr(found.cache.ledger, name)
    assert (run.cache.scaling, run.cache.query_tail) == (
        found.cache.scaling,
        found.cache.query_tail,
    )
    assert_same_mark(
        Mark(0, 0, None, tuple(run.cache.tails)), Mark(0, 0, None, tuple(found.cache.tails))
    )
    assert run.end is not None and found.end is not None
    for mark, other in zip([*run.starts, run.end], [*found.starts, found.end], strict=True):
        assert_same_mark(mark, other)
    assert run.prompts == found.prompts and not found.out_of_memory
    for outcome, again in zip(run.outcomes, found.outcomes, strict=True):
        for field in dataclasses.fields(outcome):
            value, same = getattr(outcome, field.name), getattr(again, field.name)
            if isinstance(value, torch.Tensor):
                assert_same_bits(value, same)
            else:
                assert value == same and type(value) is type(same), field.name


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
    bits = [tensor.contiguous().view(torch.uint8) for tensor in (one, other)]
    assert torch.equal(*bits)


def assert_same_book(one: ScoreBook | None, other: ScoreBook | None) -> None:
    if one is None or other is None:
        assert one is other
        return
    assert (one.available, one.heads, one._slots) == (other.available, other.heads, other._slots)
    for history in History if one.available else ():
        assert_same_bits(one.of(history), other.of(history))


def assert_same_mark(one: Mark, other: Mark) -> None:
    assert (one.slots, one.step) == (other.slots, other.step)
    assert_same_book(one.book, other.book)
    for tail, again in zip(one.tails, other.tails, strict=True):
        if tail is None or again is None:
            assert tail is again
        else:
            assert_same_bits(tail, again)


def test_the_file_is_read_by_safetensors_too(engine: Engine, tmp_path: Path) -> None:
    run = full_run(engine)
    shelf_of(engine, tmp_path).keep("key", run)
    found = load_file(the_file(tmp_path))
    assert torch.equal(found["keys.1"], run.cache.layers[1].live_keys)
    assert torch.equal(found["predicted.4"], run.outcomes[4].predicted)


def flipped(share: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        place = min(int(share * len(content)), len(content) - 1)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flip


HARM: dict[str, Callable[[bytes], bytes]] = {
    "length flipped": flipped(0.0),
    "header flipped": lambda content: content.replace(b"F32", b"F31", 1),
    "note flipped": lambda content: content.replace(b"slots", b"slotz", 1),
    "tensor flipped": flipped(0.5),
    "digest flipped": flipped(1.0),
    "truncated": lambda content: content[:-1],
    "halved": lambda content: content[: len(content) // 2],
    "almost nothing": lambda content: content[:5],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "of zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_damaged_file_is_removed_and_its_run_computed_anew(
    engine: Engine,
    tmp_path: Path,
    harm: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = played(engine, BASE, tmp_path)
    file = the_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    assert file.read_bytes() != whole
    assert shelf_of(engine, tmp_path).take("another") is None
    assert capsys.readouterr().err == ""
    assert_same_records(played(engine, BASE, tmp_path), expected)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file} is damaged (") and line.endswith("removed, computed anew")
    assert_same_records(played(engine, BASE, tmp_path, computes=False), expected)
    assert the_file(tmp_path) == file and capsys.readouterr().err == ""


def test_a_damaged_file_is_removed_even_if_nothing_takes_its_place(
    engine: Engine, tmp_path: Path
) -> None:
    shelf = shelf_of(engine, tmp_path)
    shelf.keep("key", full_run(engine))
    the_file(tmp_path).write_bytes(b"")
    assert shelf.take("key") is None
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_removed_stops_nothing(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = played(engine, BASE, tmp_path)
    file = the_file(tmp_path)
    file.unlink()
    file.mkdir()
    assert_same_records(played(engine, BASE, tmp_path), expected)
    said = capsys.readouterr().err.splitlines()
    assert f"{file} is damaged (" in said[0] and "not removed" in said[0]


def test_too_little_memory_to_load_it_leaves_the_file_for_another_time(
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shelf = shelf_of(engine, tmp_path)
    shelf.keep("key", full_run(engine))

    def short(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("kvfidelity.session.prefix.shelf.put_together", short)
        assert shelf.take("key") is None
    assert "cannot be loaded (CUDA out of memory)" in capsys.readouterr().err
    assert shelf.take("key") is not None


def no_space(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["os.fsync", "kvfidelity.session.prefix.tensorfile._header"])
def test_a_full_disk_costs_a_line(
    engine: Engine,
    tmp_path: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the end of writing or at its start: the run goes on, and no part of a file is left."""
    expected = run_dialogue(engine, told(), BASE)
    real = full_run(engine)
    with monkeypatch.context() as patch:
        if place.endswith("_header"):  # the size is asked for first
            patch.setattr("kvfidelity.session.prefix.tensorfile.size", lambda *arguments: 1)
        patch.setattr(place, no_space)
        shelf_of(engine, tmp_path / "folder").keep("key", real)
        assert_same_records(played(engine, BASE, tmp_path / "folder"), expected)
    said = capsys.readouterr().err.splitlines()
    line = "the run without evictions is not kept in"
    assert len(said) == 2 and all(
        text.startswith(line) and "No space left" in text for text in said
    )
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_costs_a_line(engine: Engine, tmp_path: Path) -> None:
    """A real short write, in a process of its own whose files may be no longer than 100 kB."""
    script = f"""
import resource
from pathlib import Path
from kvfidelity.session.engine import Engine
from tests.models.tiny import tiny_llama, tiny_tokenizer
from tests.session.test_shelf import full_run, shelf_of
engine = Engine.of(tiny_llama(), tiny_tokenizer())
run = full_run(engine)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
shelf_of(engine, Path({str(tmp_path)!r})).keep("key", run)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines() == [
        f"the run without evictions is not kept in {tmp_path}: [Errno 27] File too large"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_a_line(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    shelf_of(engine, tmp_path / "file/folder").keep("key", full_run(engine))
    assert "is not kept in" in capsys.readouterr().err


def test_a_run_whose_memory_ran_out_is_not_kept(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvfidelity.session import run as module

    calls = []

    def limited(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    real = module.play_turn
    monkeypatch.setattr(module, "play_turn", limited)
    turns = played(engine, BASELINE, tmp_path).turns
    assert turns["finish_reason"].to_list()[-1] == "out_of_memory"
    assert list(tmp_path.iterdir()) == []


def test_without_room_no_folder_is_made(engine: Engine, tmp_path: Path) -> None:
    shelf = shelf_of(engine, tmp_path / "folder", room=0)
    shelf.keep("key", full_run(engine))
    assert shelf.take("key") is None
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("what", ["code", "model_revision", "dtype", "torch", "cpu", "threads"])
def test_what_was_computed_otherwise_is_not_taken(
    engine: Engine, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"code": "a", "model_revision": "b", "dtype": "c"}
    shelf_of(engine, tmp_path, **about).keep("key", full_run(engine))
    assert shelf_of(engine, tmp_path, **about).take("key") is not None
    assert shelf_of(engine, tmp_path, **about).take("other") is None
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "other")
    elif what == "cpu":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    else:
        about[what] = "other"
    assert shelf_of(engine, tmp_path, **about).take("key") is None


def test_the_bank_asks_memory_first_and_the_shelf_next(engine: Engine, tmp_path: Path) -> None:
    run, computed = full_run(engine), []

    def compute() -> FullRun:
        computed.append(1)
        return run

    bank = PrefixBank(ROOM, shelf_of(engine, tmp_path))
    assert bank.get("key", compute) is run
    the_file(tmp_path).write_bytes(b"")
    assert bank.get("key", compute) is run
    the_file(tmp_path).unlink()
    small = PrefixBank(0, shelf_of(engine, tmp_path))
    for _ in range(3):
        small.get("key", compute)
    assert len(computed) == 2, "once per bank: without memory the shelf is asked each time"


@pytest.fixture(scope="module")
def runs(engine: Engine) -> list[FullRun]:
    return [full_run(engine, BASELINE, turns) for turns in (1, 2, 4)]


STEPS = st.lists(
    st.tuples(st.sampled_from(["keep", "take"]), st.sampled_from("abcd"), st.integers(0, 2)),
    min_size=10,
    max_size=30,
)


@given(steps=STEPS, room=st.sampled_from([0.5, 1.0, 1.5, 2.2]))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_least_recently_used_go_first_and_the_bound_holds(
    engine: Engine, runs: list[FullRun], steps: list[tuple[str, str, int]], room: float
) -> None:
    """Against a model of it: keys in the order of their use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [size_on_disk(engine, run) for run in runs]
        bound = int(room * sizes[2])
        shelf = shelf_of(engine, folder, bound)
        model: OrderedDict[str, int] = OrderedDict()
        for deed, key, which in steps:
            if deed == "take":
                assert (shelf.take(key) is not None) == (key in model)
                if key in model:
                    model.move_to_end(key)
            else:
                shelf.keep(key, runs[which])
                if key not in model and sizes[which] <= bound:
                    model[key] = sizes[which]
                    while sum(model.values()) > bound:
                        model.popitem(last=False)
            there = {file.name: file.stat().st_size for file in folder.iterdir()}
            assert there == {shelf._place(k).name: size for k, size in model.items()}
            assert sum(there.values()) <= bound


def test_what_is_used_stays_and_room_is_made_before_it_is_taken(
    engine: Engine, tmp_path: Path, runs: list[FullRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_on_disk(engine, runs[0])
    shelf = shelf_of(engine, tmp_path, 2 * size)
    for key in ("a", "b"):
        shelf.keep(key, runs[0])
    assert shelf.take("a") is not None
    real = tensorfile.write

    def watched(*arguments: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 1, "beside it the new one is within the bound"
        real(*arguments)

    monkeypatch.setattr(tensorfile, "write", watched)
    shelf.keep("c", runs[0])
    assert [shelf.take(key) is not None for key in "abc"] == [True, False, True]


def size_on_disk(engine: Engine, run: FullRun) -> int:
    with tempfile.TemporaryDirectory() as folder:
        shelf_of(engine, Path(folder)).keep("key", run)
        return the_file(Path(folder)).stat().st_size


def test_what_a_killed_process_left_half_written_gives_way(
    engine: Engine, tmp_path: Path, runs: list[FullRun]
) -> None:
    size = size_on_disk(engine, runs[0])
    left = tmp_path / ".snapshot.tmp-1"
    left.write_bytes(bytes(size))
    os.utime(left, (1, 1))
    shelf = shelf_of(engine, tmp_path, 2 * size)
    shelf.keep("a", runs[0])
    assert left.exists()
    shelf.keep("b", runs[0])
    assert not left.exists()
    assert shelf.take("a") is not None and shelf.take("b") is not None


@pytest.mark.parametrize("before", ["iterdir", "unlink"])
def test_a_file_that_vanishes_meanwhile_disturbs_nobody(
    engine: Engine,
    tmp_path: Path,
    runs: list[FullRun],
    before: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process makes room at the same moment: before this one looks, or before it acts."""
    shelf = shelf_of(engine, tmp_path, 2 * size_on_disk(engine, runs[0]))
    for key in ("a", "b"):
        shelf.keep(key, runs[0])
    listed, unlink = Path.iterdir, Path.unlink

    def emptied(folder: Path) -> Any:
        files = list(listed(folder))
        for file in files:
            unlink(file)
        return iter(files)

    def again(file: Path, missing_ok: bool = False) -> None:
        unlink(file)
        unlink(file, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, before, emptied if before == "iterdir" else again)
        shelf._make_room(1)
    shelf.keep("c", runs[0])
    assert shelf.take("c") is not None


SCRIPT = """
import json, sys
from pathlib import Path
from kvfidelity.session.engine import Engine
from tests.models.tiny import tiny_llama, tiny_tokenizer
from tests.session.test_shelf import full_run, shelf_of, same_outcomes

engine = Engine.of(tiny_llama(), tiny_tokenizer())
run = full_run(engine, turns=2)
shelf = shelf_of(engine, Path(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
taken = 0
for number in range(60):
    key = "abcdef"[(number * int(sys.argv[3])) % 6]
    found = shelf.take(key)
    if found is None:
        shelf.keep(key, run)
    else:
        assert same_outcomes(found, run)
        taken += 1
print(json.dumps(taken))
"""


def same_outcomes(one: FullRun, other: FullRun) -> bool:
    pairs = zip(one.outcomes, other.outcomes, strict=True)
    return all(torch.equal(a.predicted, b.predicted) for a, b in pairs)


def test_processes_that_use_one_folder_at_once(tmp_path: Path) -> None:
    """They write, take and remove the same files; each file is whole, and the bound holds."""
    engine = Engine.of(tiny_llama(), tiny_tokenizer())
    size = size_on_disk(engine, full_run(engine, turns=2))
    room = int(4.5 * size)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(room), str(pace)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pace in (1, 5)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    ends = [process.communicate("go\n", timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert all("damaged" not in said for _, said in ends)
    assert sum(json.loads(found) for found, _ in ends) > 0
    left = list(tmp_path.iterdir())
    assert left and all(file.suffix == ".safetensors" for file in left)
    assert sum(file.stat().st_size for file in left) <= room
