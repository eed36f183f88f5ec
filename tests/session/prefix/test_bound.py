"""What is kept stays within its bound, whoever else uses the folder."""

from __future__ import annotations

import json
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
from kvfidelity.session.engine import Engine
from kvfidelity.session.prefix import tensorfile
from kvfidelity.session.prefix.full import FullRun

from tests.models.tiny import tiny_llama, tiny_tokenizer
from tests.session.prefix.runs import (
    full_run,
    shelf_of,
    size_on_disk,
)
from tests.session.test_run import BASELINE
from tests.waiting import LIMIT_S


def test_without_room_no_folder_is_made(engine: Engine, tmp_path: Path) -> None:
    shelf = shelf_of(engine, tmp_path / "folder", room=0)
    shelf.keep("key", full_run(engine))
    assert shelf.take("key") is None
    assert not (tmp_path / "folder").exists()


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
from tests.session.prefix.runs import full_run, shelf_of, same_outcomes

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


def test_processes_that_use_one_folder_at_once(tmp_path: Path) -> None:
    """They write, take and remove the same files; each file is whole, and the bound holds."""
    engine = Engine.of(tiny_llama(), tiny_tokenizer())
    size = size_on_disk(engine, full_run(engine, turns=2))
    room = int(4.5 * size)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(room), str(pace)],
            cwd=Path(__file__).parents[3],
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
    ends = [process.communicate("go\n", timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert all("damaged" not in said for _, said in ends)
    assert sum(json.loads(found) for found, _ in ends) > 0
    left = list(tmp_path.iterdir())
    assert left and all(file.suffix == ".safetensors" for file in left)
    assert sum(file.stat().st_size for file in left) <= room
