"""Every kind of damage to a results folder is named; whole artifacts are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from kvfidelity.artifacts import write_json, write_parquet
from kvfidelity.errors import UserError
from kvfidelity.fingerprint import stage_fingerprint
from kvfidelity.verify import Finding, State, verify

SCRIPT = Path(__file__).parents[1] / "workflow/scripts/verify.py"
FRAME = pl.DataFrame(
    {
        "turn": [0, 1],
        "reply": ["a", None],
        "reference_token_nll": [[0.5, float("nan")], []],
        "runs": [[{"start": 0, "stop": 4}], []],
        "ttft_s": [0.1, 0.2],
    }
)
RUN = "tiny/own/random/stale/small/0"
SPEC = dict(
    zip(("model", "dataset", "policy", "positions", "threshold"), RUN.split("/"), strict=False)
)
TURNS = f"generate/{RUN}/000/turns.parquet"


def write_turns(path: Path, **changes: str) -> None:
    notes = {"code": stage_fingerprint("generate"), "spec": json.dumps(SPEC | {"seed": 0})}
    write_parquet(FRAME, path, kind="turns", metadata=notes | changes)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_turns(tmp_path / TURNS)
    write_parquet(FRAME, tmp_path / "dialogues/tiny/own/pool.parquet", kind="dialogues")
    write_json(tmp_path / "dialogues/tiny/own/manifest.json", {"kept": 1})
    write_parquet(FRAME, tmp_path / "tables/turns.parquet", kind="turns")
    return tmp_path


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
        (lambda path: write_turns(path, schema_version="0"), State.STALE, "schema version 0"),
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


def test_the_command_names_and_removes_what_is_wrong_and_leaves_the_stale(results: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(results), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run().returncode == 0
    write_turns(results / TURNS, code="0" * 12)
    truncate(results / "tables/turns.parquet")
    named = run()
    assert named.returncode == 1
    assert "4 files, 1 wrong, 1 stale" in named.stdout and "remedy:" in named.stdout
    assert run("--remove").returncode == 0
    assert (results / TURNS).is_file()
    assert not (results / "tables/turns.parquet").exists()
