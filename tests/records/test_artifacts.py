"""Artifacts are whole or absent, and say what they are."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.atomic_files import replacing, temporary_path, write_text
from kvfidelity.cli import disk_error
from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import digest, read_metadata, read_parquet, write_parquet

FRAME = pl.DataFrame({"turn": [0, 1], "reply": ["a", None], "ttft_s": [0.1, 0.2]})


def test_what_a_killed_job_left_of_a_file_goes_when_the_file_is_made(tmp_path: Path) -> None:
    names = [".a[1].parquet.tmp-1", ".a[1].parquet.tmp-4194305"]
    others = [".a1.parquet.tmp-1", ".b.parquet.tmp-1", "a[1].parquet.tmp-1"]
    for name in names + others:
        (tmp_path / name).write_bytes(b"half")
    write_parquet(pl.DataFrame({"n": [1]}), tmp_path / "a[1].parquet", kind="turns")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].parquet", *others}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "turns.parquet"
    write_parquet(FRAME, file, kind="turns", metadata={"code": "abc"})
    assert read_parquet(file, kind="turns").equals(FRAME)
    assert read_metadata(file)["code"] == "abc"
    assert [entry.name for entry in file.parent.iterdir()] == ["turns.parquet"]


def test_a_folder_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    file = tmp_path / "a [1] {b} ~*?" / "turns.parquet"
    write_parquet(FRAME, file, kind="turns")
    assert read_metadata(file)["kind"] == "turns"
    assert read_parquet(file, kind="turns").equals(FRAME)
    chosen = read_parquet(file, kind="turns", columns={"reply", "another"})
    assert chosen.equals(FRAME.select("reply"))


def test_no_damaged_footer_is_more_than_one_line(tmp_path: Path) -> None:
    """Some of these make polars panic."""
    file = tmp_path / "turns.parquet"
    write_parquet(FRAME, file, kind="turns")
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for place in range(len(whole) - 8 - footer, len(whole) - 8):
        file.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
        try:
            read_metadata(file)
        except UserError as error:
            assert str(error).startswith(f"{file} is damaged (")
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > footer / 10


def test_timings_are_not_part_of_the_digest() -> None:
    assert digest(FRAME) == digest(FRAME.with_columns(ttft_s=9.0))
    assert digest(FRAME) != digest(FRAME.with_columns(reply=pl.lit("b")))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


FILLED = """
import resource, sys
from pathlib import Path
import polars as pl
from kvfidelity.cli import main_guard
from kvfidelity.records.artifacts import write_parquet

frame = pl.DataFrame({"text": [f"{n * 7919 % 10007}" * 9 for n in range(5000)]})
file = Path(sys.argv[1])
write_parquet(frame, file, kind="turns")
content = file.read_bytes()
for ninth in range(9):
    limit = len(content) * ninth // 9
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        main_guard(lambda: write_parquet(frame, file, kind="turns"))
    except SystemExit as end:
        print(end.code, file.read_bytes() == content, len(list(file.parent.iterdir())))
"""


def test_a_disk_that_fills_up_anywhere_is_one_line(tmp_path: Path) -> None:
    """A real short write after each ninth of the file; the file that was there stays."""
    file = tmp_path / "turns.parquet"
    command = [sys.executable, "-c", FILLED, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert len(lines) == 9 and done.stdout.splitlines() == ["2 True 1"] * 9
    for line in lines:
        assert line.startswith(f"error: {file} would be larger than this process may write")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, number: int) -> None:
    file = tmp_path / "turns.parquet"
    with pytest.raises(OSError) as caught, replacing(file):
        raise OSError(number, os.strerror(number))
    assert str(disk_error(caught.value)).startswith(
        f"no space left on the disk that holds {file}: free some"
    )


@pytest.mark.parametrize(
    "filling",
    ["bytearray(8 << 30)", "torch.empty(8 << 30)", "Thread(target=print).start()"],
    ids=["Python", "PyTorch", "threads"],
)
def test_memory_that_runs_out_is_one_line(filling: str) -> None:
    """A real limit of the address space, from what the process has by then."""
    script = f"""
import resource
from pathlib import Path
from threading import Thread
import torch
from kvfidelity.cli import main_guard
def fill():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    {filling}
main_guard(fill)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: out of memory (or of address space, see `ulimit -v`)")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    file = tmp_path / "a.txt"
    file.symlink_to(other)
    temporary_path(file).symlink_to(other)
    write_text(file, "new")
    assert (file.is_symlink(), file.read_text(), other.read_text()) == (False, "new", "kept")


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_truncated_file_is_named_with_the_remedy(tmp_path: Path, size: int) -> None:
    file = tmp_path / "turns.parquet"
    write_parquet(FRAME, file, kind="turns")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"turns\.parquet is damaged .* delete it and run again"):
        read_parquet(file, kind="turns")


def test_a_file_of_another_kind_or_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "turns.parquet"
    write_parquet(FRAME, file, kind="turns")
    with pytest.raises(UserError, match="not 'verdicts'"):
        read_parquet(file, kind="verdicts")
    monkeypatch.setattr("kvfidelity.records.artifacts.SCHEMA_VERSION", 99)
    with pytest.raises(UserError, match=r"schema version \d+, this code writes 99"):
        read_parquet(file, kind="turns")
    with pytest.raises(UserError, match="does not exist"):
        read_parquet(tmp_path / "none.parquet", kind="turns")


FILL = """
import sys, resource
from pathlib import Path
import polars as pl
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.cli import main_guard
def main():
    frame = pl.DataFrame({"reply": [str(n) * 50 for n in range(20000)]})
    write_parquet(frame, Path(sys.argv[1]), kind="turns")
main_guard(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        file = tmp_path / "turns.parquet"
        done = subprocess.run(
            [sys.executable, "-c", FILL, str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: no space left on the disk")
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
