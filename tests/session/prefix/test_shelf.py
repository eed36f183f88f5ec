"""What is damaged, full or of other code costs a line and a computation, and no job."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kvfidelity.session.engine import Engine
from kvfidelity.session.prefix.bank import PrefixBank
from kvfidelity.session.prefix.full import FullRun
from kvfidelity.session.run import run_dialogue

from tests.session.prefix.runs import (
    ROOM,
    assert_same_records,
    full_run,
    played,
    shelf_of,
    the_file,
)
from tests.session.test_recall import told
from tests.session.test_run import BASE, BASELINE


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
from tests.session.prefix.runs import full_run, shelf_of
engine = Engine.of(tiny_llama(), tiny_tokenizer())
run = full_run(engine)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
shelf_of(engine, Path({str(tmp_path)!r})).keep("key", run)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
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
