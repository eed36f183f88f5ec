"""The name of the processor or GPU in the notes of an artifact."""

from __future__ import annotations

import platform
import socket
from pathlib import Path

import pytest

from kvfidelity.worker.processor import gpu_name, processor


def test_the_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 9R14\n\nmodel name : x\n")
    assert processor(file) == "AMD EPYC 9R14"


def test_a_system_that_names_none_gives_its_architecture(tmp_path: Path) -> None:
    assert processor(tmp_path / "none") == platform.machine()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t:\n")
    assert processor(tmp_path / "cpuinfo") == platform.machine()


def test_a_gpu_that_processes_share_by_mps_is_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert gpu_name("NVIDIA H200") == "NVIDIA H200"
    (tmp_path / "control").touch()
    assert gpu_name("NVIDIA H200") == "NVIDIA H200", "a file that is left, and no daemon's socket"
    (tmp_path / "control").unlink()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind("control")
        assert gpu_name("NVIDIA H200") == "NVIDIA H200 with MPS"
