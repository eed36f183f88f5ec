"""Every kind of damage to a results folder is named; whole artifacts are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.atomic_files import write_json
from kvfidelity.errors import UserError
from kvfidelity.pipeline.code_digest import stage_digest
from kvfidelity.pipeline.verify import Finding, State, verify
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.grid import CELL_FIELDS

SCRIPT = Path(__file__).parents[2] / "workflow/scripts/verify.py"
FRAME = pl.DataFrame(
    {
        "turn": [0, 1],
        "reply": ["a", None],
        "reference_token_nll": [[0.5, float("nan")], []],
        "slot_spans": [[{"start": 0, "stop": 4}], []],
        "ttft_s": [0.1, 0.2],
    }
)
RUN = "tiny/own/random/stale/small/0"
SPEC = dict(zip(CELL_FIELDS[:-1], RUN.split("/"), strict=False))
TURNS = f"generate/{RUN}/000/turns.parquet"


def write_turns(path: Path, **changes: str) -> None:
    notes = {"code": stage_digest("generate"), "spec": json.dumps(SPEC | {"seed": 0})}
    write_parquet(FRAME, path, kind="turns", metadata=notes | changes)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_turns(folder / TURNS)
    write_parquet(FRAME, folder / "dialogues/tiny/own/pool.parquet", kind="dialogues")
    write_json(folder / "dialogues/tiny/own/manifest.json", {"kept": 1})
    write_parquet(FRAME, folder / "tables/turns.parquet", kind="turns")
    return folder


def test_whole_artifacts_are_as_they_should_be(results: Path) -> None:
    assert verify(results) == (4, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def other_content(path: Path) -> None:
    metadata = pl.read_parquet_metadata(path)
    changed = FRAME.with_columns(reply=pl.lit("never said"))
    changed.write_parquet(path, metadata={k: v for k, v in metadata.items() if "kvf" in k})


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "state", "reason"),
    [
        (truncate, State.DAMAGED, "delete it and run again"),
        (empty, State.DAMAGED, "delete it and run again"),
        (other_content, State.DAMAGED, "not what its digest says"),
        (FRAME.write_parquet, State.MISPLACED, "not written by this workflow"),
        (lambda path: write_turns(path, kind="evictions"), State.MISPLACED, "holds evictions"),
        (lambda path: write_turns(path, schema_version="0"), State.OUTDATED, "schema version 0"),
        (
            lambda path: write_turns(path, schema_version="99"),
            State.STALE,
            "read it with the newer code",
        ),
        (
            lambda path: write_turns(path, code="0" * 12),
            State.STALE,
            "other code of stage generate",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_named(
    results: Path, damage: Callable[[Path], object], state: State, reason: str
) -> None:
    damage(results / TURNS)
    _, [finding] = verify(results)
    assert (finding.path, finding.state) == (results / TURNS, state)
    assert reason in finding.reason


def test_a_run_in_another_runs_place_is_misplaced(results: Path) -> None:
    moved = results / TURNS.replace("stale", "rerotated")
    moved.parent.mkdir(parents=True)
    (results / TURNS).rename(moved)
    assert verify(results)[1] == [Finding(moved, State.MISPLACED, f"is the run {RUN}")]


def test_broken_json_is_damaged(results: Path) -> None:
    (results / "dialogues/tiny/own/manifest.json").write_text('{"kept": ')
    _, [finding] = verify(results)
    assert finding.state == State.DAMAGED


def test_half_a_file_is_left_over_once_its_writer_is_gone(results: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    gone = results / "tables" / f".turns.parquet.tmp-{ended.pid}"
    gone.write_bytes(b"half")
    (results / "tables" / f".turns.parquet.tmp-{os.getpid()}").write_bytes(b"being written")
    _, [finding] = verify(results)
    assert (finding.path, finding.state) == (gone, State.LEFT_OVER)


def test_no_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        verify(tmp_path / "nowhere")


def run(results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(results), *arguments]
    # Where there is no configuration to compare with.
    return subprocess.run(command, cwd=results, capture_output=True, text=True, check=False)


def moved(results: Path) -> dict[str, bytes]:
    """Files that were moved aside, by path below the folder of that time."""
    [folder] = results.with_name(f"{results.name}.removed").iterdir()
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_command_moves_what_is_wrong_or_stale_aside(results: Path) -> None:
    assert run(results).returncode == 0
    write_turns(results / TURNS, code="0" * 12)
    truncate(results / "tables/turns.parquet")
    half = (results / "tables/turns.parquet").read_bytes()
    named = run(results)
    assert named.returncode == 1
    assert "4 files, 1 wrong, 1 stale" in named.stdout and "remedy:" in named.stdout
    done = run(results, "--remove")
    assert done.returncode == 0, done.stderr
    assert f"moved 2 files to {results}.removed/" in done.stdout
    assert not (results / TURNS).exists()
    assert not (results / "tables/turns.parquet").exists()
    assert moved(results).keys() == {TURNS, "tables/turns.parquet"}
    assert moved(results)["tables/turns.parquet"] == half


def test_nothing_wrong_makes_no_folder(results: Path) -> None:
    assert run(results, "--remove").returncode == 0
    assert not results.with_name(f"{results.name}.removed").exists()


def test_what_a_second_call_moves_does_not_replace_what_the_first_moved(results: Path) -> None:
    for content in (b"one", b"two"):
        (results / TURNS).write_bytes(content)
        assert run(results, "--remove").returncode == 0
    found = results.with_name(f"{results.name}.removed").rglob("turns.parquet")
    assert sorted(path.read_bytes() for path in found) == [b"one", b"two"]


def test_an_artifact_of_an_older_schema_is_moved_aside_however_many_there_are(
    results: Path,
) -> None:
    files = [results / TURNS.replace("000", f"{n:03}") for n in range(20)]
    for path in files:
        write_turns(path, schema_version="0")
    done = run(results, "--remove")
    assert done.returncode == 0, done.stderr
    assert len(moved(results)) == 20
    assert not any(path.exists() for path in files)


def test_a_file_of_questions_that_an_earlier_version_wrote_is_named(results: Path) -> None:
    """They are in the turns now, so no job writes that file again."""
    earlier = results / TURNS.replace("turns", "recall")
    write_parquet(FRAME, earlier, kind="recall", metadata={"schema_version": "4"})
    _, [finding] = verify(results)
    assert (finding.path, finding.state) == (earlier, State.OUTDATED)
    assert run(results, "--remove").returncode == 0
    assert verify(results) == (4, [])


@pytest.mark.parametrize(("files", "damaged", "refused"), [(3, 1, 0), (100, 5, 0), (100, 6, 1)])
def test_too_many_damaged_files_are_not_moved_unless_forced(
    results: Path, files: int, damaged: int, refused: int
) -> None:
    """Then the reader is likely wrong: every digest was, under another Python."""
    shutil.rmtree(results)
    for number in range(files):
        write_json(results / f"{number}.json", number)
    for number in range(damaged):
        (results / f"{number}.json").write_text("{")
    done = run(results, "--remove")
    assert (done.returncode != 0) == refused
    assert len(list(results.iterdir())) == files - (0 if refused else damaged)
    if refused:
        [line] = done.stderr.splitlines()
        assert "6 of 100 files look damaged" in line and "polars" in line and "--force" in line
        assert run(results, "--remove", "--force").returncode == 0
        assert len(list(results.iterdir())) == files - damaged
