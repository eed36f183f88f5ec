"""The processor's name in the notes of an artifact."""

from __future__ import annotations

import platform
from pathlib import Path

from kvfidelity.worker.processor import processor


def test_the_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 9R14\n\nmodel name : x\n")
    assert processor(file) == "AMD EPYC 9R14"


def test_a_system_that_names_none_gives_its_architecture(tmp_path: Path) -> None:
    assert processor(tmp_path / "none") == platform.machine()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t:\n")
    assert processor(tmp_path / "cpuinfo") == platform.machine()
