"""The folder stays within its limit, also when other processes use it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.prefix import tensor_file
from tests.generation.test_run import BASELINE
from tests.models.tiny import tiny_llama, tiny_tokenizer
from tests.prefix.runs import baseline_run, disk_cache, same_outcomes, size_on_disk
from tests.waiting import LIMIT_S


def test_without_room_no_folder_is_made(engine: Engine, tmp_path: Path) -> None:
    disk = disk_cache(engine, tmp_path / "folder", max_bytes=0)
    disk.store("key", baseline_run(engine))
    assert disk.load("key") is None
    assert not (tmp_path / "folder").exists()


@pytest.fixture(scope="module")
def runs(engine: Engine) -> list[BaselineRun]:
    return [baseline_run(engine, BASELINE, turns) for turns in (1, 2, 4)]


STEPS = st.lists(
    st.tuples(st.sampled_from(["store", "load"]), st.sampled_from("abcd"), st.integers(0, 2)),
    min_size=10,
    max_size=30,
)


@given(steps=STEPS, max_bytes=st.sampled_from([0.5, 1.0, 1.5, 2.2]))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_least_recently_used_go_first_and_the_bound_holds(
    engine: Engine, runs: list[BaselineRun], steps: list[tuple[str, str, int]], max_bytes: float
) -> None:
    """Compared with a model: an ordered dictionary of keys by last use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [size_on_disk(engine, run) for run in runs]
        bound = int(max_bytes * sizes[2])
        disk = disk_cache(engine, folder, bound)
        model: OrderedDict[str, int] = OrderedDict()
        for action, key, which in steps:
            if action == "load":
                assert (disk.load(key) is not None) == (key in model)
                if key in model:
                    model.move_to_end(key)
            else:
                disk.store(key, runs[which])
                if key not in model and sizes[which] <= bound:
                    model[key] = sizes[which]
                    while sum(model.values()) > bound:
                        model.popitem(last=False)
            there = {file.name: file.stat().st_size for file in folder.iterdir()}
            assert there == {disk._path(k).name: size for k, size in model.items()}
            assert sum(there.values()) <= bound


def test_used_files_stay_and_room_is_made_before_writing(
    engine: Engine, tmp_path: Path, runs: list[BaselineRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_on_disk(engine, runs[0])
    disk = disk_cache(engine, tmp_path, 2 * size)
    for key in ("a", "b"):
        disk.store(key, runs[0])
    assert disk.load("a") is not None
    real = tensor_file.write_tensors

    def watched(*arguments: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 1, "the new file fits next to it"
        real(*arguments)

    monkeypatch.setattr(tensor_file, "write_tensors", watched)
    disk.store("c", runs[0])
    assert [disk.load(key) is not None for key in "abc"] == [True, False, True]


def test_a_half_written_file_of_a_killed_process_is_deleted(
    engine: Engine, tmp_path: Path, runs: list[BaselineRun]
) -> None:
    size = size_on_disk(engine, runs[0])
    left = tmp_path / ".half-written.tmp-1"
    left.write_bytes(bytes(size))
    os.utime(left, (1, 1))
    disk = disk_cache(engine, tmp_path, 2 * size)
    disk.store("a", runs[0])
    assert left.exists()
    disk.store("b", runs[0])
    assert not left.exists()
    assert disk.load("a") is not None and disk.load("b") is not None


@pytest.mark.parametrize("before", ["iterdir", "unlink"])
def test_a_file_that_vanishes_meanwhile_is_no_error(
    engine: Engine,
    tmp_path: Path,
    runs: list[BaselineRun],
    before: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process makes room at the same moment: before this one looks, or before it acts."""
    disk = disk_cache(engine, tmp_path, 2 * size_on_disk(engine, runs[0]))
    for key in ("a", "b"):
        disk.store(key, runs[0])
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
        disk._make_room(1)
    disk.store("c", runs[0])
    assert disk.load("c") is not None


SCRIPT = """
import os, sys
from pathlib import Path
from kvfidelity.decoding.engine import Engine
from tests.models.tiny import tiny_llama, tiny_tokenizer
from tests.prefix.test_bound import uses

engine = Engine.from_model(tiny_llama(), tiny_tokenizer())
print("ready", flush=True)
sys.stdin.readline()
print(uses(engine, Path(sys.argv[1]), int(sys.argv[2]), pace=5), flush=True)
os._exit(0)
"""


def uses(engine: Engine, folder: Path, max_bytes: int, pace: int) -> int:
    """Load or store one of six files sixty times; how often it was there."""
    run, disk, found_there = baseline_run(engine, turns=2), disk_cache(engine, folder, max_bytes), 0
    for number in range(60):
        key = "abcdef"[(number * pace) % 6]
        found = disk.load(key)
        if found is None:
            disk.store(key, run)
        else:
            assert same_outcomes(found, run)
            found_there += 1
    return found_there


def test_processes_that_use_one_folder_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They write, load and delete the same files; each file is complete, and the limit holds."""
    engine = Engine.from_model(tiny_llama(), tiny_tokenizer())
    size = size_on_disk(engine, baseline_run(engine, turns=2))
    max_bytes = int(4.5 * size)
    other = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(max_bytes)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    mine = uses(engine, tmp_path, max_bytes, pace=1)
    stdout, stderr = other.communicate(timeout=LIMIT_S)
    assert other.returncode == 0, stderr
    assert "corrupt" not in stderr + capsys.readouterr().err
    assert mine + int(stdout) > 0
    left = list(tmp_path.iterdir())
    assert left and all(file.suffix == ".safetensors" for file in left)
    assert sum(file.stat().st_size for file in left) <= max_bytes
