"""A corrupt file, a full disk or other code cost a line and a computation, but no job."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.generation.run import run_dialogue
from kvfidelity.prefix.cache import PrefixCache
from tests.generation.test_recall import dialogue_with_evidence
from tests.generation.test_run import BASE, BASELINE
from tests.prefix.runs import (
    MAX_BYTES,
    assert_same_records,
    baseline_run,
    disk_cache,
    run_in_new_process,
    the_file,
)


def flipped(share: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        offset = min(int(share * len(content)), len(content) - 1)
        return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
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


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_corrupt_file_is_deleted_and_its_baseline_computed_again(
    engine: Engine,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = run_in_new_process(engine, BASE, tmp_path)
    file = the_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert disk_cache(engine, tmp_path).load("another") is None
    assert capsys.readouterr().err == ""
    assert_same_records(run_in_new_process(engine, BASE, tmp_path), expected)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file} is corrupt (") and line.endswith("deleted, computed again")
    assert_same_records(run_in_new_process(engine, BASE, tmp_path, computes=False), expected)
    assert the_file(tmp_path) == file and capsys.readouterr().err == ""


def test_a_corrupt_file_is_deleted_even_if_nothing_replaces_it(
    engine: Engine, tmp_path: Path
) -> None:
    disk = disk_cache(engine, tmp_path)
    disk.store("key", baseline_run(engine))
    the_file(tmp_path).write_bytes(b"")
    assert disk.load("key") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_or_deleted_is_no_error(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run_in_new_process(engine, BASE, tmp_path)
    file = the_file(tmp_path)
    file.unlink()
    file.mkdir()
    assert_same_records(run_in_new_process(engine, BASE, tmp_path), expected)
    stderr = capsys.readouterr().err.splitlines()
    assert f"{file} is corrupt (" in stderr[0] and "not deleted" in stderr[0]


def test_a_file_that_does_not_fit_into_memory_is_left(
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = disk_cache(engine, tmp_path)
    disk.store("key", baseline_run(engine))

    def short(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("kvfidelity.prefix.disk_cache.from_tensors", short)
        assert disk.load("key") is None
    assert "cannot be loaded (CUDA out of memory)" in capsys.readouterr().err
    assert disk.load("key") is not None


def no_space(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("path", ["os.fsync", "kvfidelity.prefix.tensor_file._header"])
def test_a_full_disk_costs_a_line(
    engine: Engine,
    tmp_path: Path,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the end of writing or at its start: the run goes on, and no part of a file is left."""
    expected = run_dialogue(engine, dialogue_with_evidence(), BASE)
    real = baseline_run(engine)
    with monkeypatch.context() as patch:
        if path.endswith("_header"):  # the size is asked for first
            patch.setattr("kvfidelity.prefix.tensor_file.file_size", lambda *arguments: 1)
        patch.setattr(path, no_space)
        disk_cache(engine, tmp_path / "folder").store("key", real)
        assert_same_records(run_in_new_process(engine, BASE, tmp_path / "folder"), expected)
    stderr = capsys.readouterr().err.splitlines()
    line = "the baseline is not stored in"
    assert len(stderr) == 2 and all(
        text.startswith(line) and "No space left" in text for text in stderr
    )
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_costs_a_line(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real short write: files are limited to 100 kB for a while."""
    run = baseline_run(engine)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        disk_cache(engine, tmp_path).store("key", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the baseline is not stored in {tmp_path}: [Errno 27] File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_a_line(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    disk_cache(engine, tmp_path / "file/folder").store("key", baseline_run(engine))
    assert "is not stored in" in capsys.readouterr().err


def test_a_baseline_that_ran_out_of_memory_is_not_stored(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvfidelity.generation import timed_turn as module

    calls = []

    def limited(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    real = module.run_turn
    monkeypatch.setattr(module, "run_turn", limited)
    turns = run_in_new_process(engine, BASELINE, tmp_path).turns
    assert turns["finish_reason"].to_list()[-1] == "out_of_memory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["code", "model_revision", "dtype", "torch", "cpu", "threads"])
def test_a_baseline_of_another_environment_is_not_loaded(
    engine: Engine, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"code": "a", "model_revision": "b", "dtype": "c"}
    disk_cache(engine, tmp_path, **environment).store("key", baseline_run(engine))
    assert disk_cache(engine, tmp_path, **environment).load("key") is not None
    assert disk_cache(engine, tmp_path, **environment).load("other") is None
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "other")
    elif what == "cpu":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    else:
        environment[what] = "other"
    assert disk_cache(engine, tmp_path, **environment).load("key") is None


def test_the_memory_cache_is_tried_before_the_disk(engine: Engine, tmp_path: Path) -> None:
    run, computed = baseline_run(engine), []

    def compute() -> BaselineRun:
        computed.append(1)
        return run

    prefix_cache = PrefixCache(MAX_BYTES, disk_cache(engine, tmp_path), store_all=True)
    assert prefix_cache.get("key", compute) is run
    the_file(tmp_path).write_bytes(b"")
    assert prefix_cache.get("key", compute) is run
    the_file(tmp_path).unlink()
    small = PrefixCache(0, disk_cache(engine, tmp_path))
    for _ in range(3):
        small.get("key", compute)
    assert len(computed) == 2, "once per memory cache: without memory the disk is asked each time"
