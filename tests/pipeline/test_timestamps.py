"""Files dated in the future are dated before now, in their order; others are left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvfidelity.pipeline.timestamps import date_now, redate_future_files

HOUR = 3600 * 10**9


def test_order_is_kept_and_the_past_is_untouched(tmp_path: Path) -> None:
    now = time.time_ns()
    offsets = {"past": -HOUR, "b": 2 * HOUR, "a": HOUR, "also_a": HOUR, "folder/c": 3 * HOUR}
    for name, offset in offsets.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, ns=(now + offset, now + offset))
    assert redate_future_files([tmp_path, tmp_path / "nowhere"]) == 4
    counted = {name: (tmp_path / name).stat().st_mtime_ns for name in offsets}
    assert counted["past"] == now - HOUR
    assert now - HOUR < counted["a"] == counted["also_a"] < counted["b"] < counted["folder/c"]
    assert counted["folder/c"] <= time.time_ns()
    assert redate_future_files([tmp_path]) == 0


def test_a_folder_is_dated_now(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep/old.tsv"
    file.touch()
    os.utime(file, (1, 1))
    before = time.time() - 1
    date_now(tmp_path)
    assert file.stat().st_mtime >= before
    date_now(tmp_path / "nowhere")
