"""Where a training runs: a GPU by its number, held to a share of its memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

# In a process of its own: the share of memory is the process's.
PROBE = f"""
import runpy, torch
place_of = runpy.run_path({str(ROOT / "workflow/scripts/finetune_model.py")!r})["place_of"]
with place_of(DEVICE, 1, WORKERS) as device:
    print(device)
    if device != "cpu":
        print(torch.cuda.current_device())
        size = int(0.3 * torch.cuda.get_device_properties(0).total_memory)
        try:
            torch.empty(size, dtype=torch.uint8, device=device)
            print("three tenths fit")
        except torch.OutOfMemoryError:
            print("three tenths do not fit")
"""


def place(cwd: Path, device: str, workers: int) -> list[str]:
    code = PROBE.replace("DEVICE", repr(device)).replace("WORKERS", str(workers))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("workers", [1, 3])
def test_on_a_cpu_it_is_the_cpu(tmp_path: Path, workers: int) -> None:
    assert place(tmp_path, "cpu", workers) == ["cpu"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_on_a_gpu_it_is_the_gpus_number_and_a_share_of_memory(tmp_path: Path, device: str) -> None:
    assert place(tmp_path, device, 1) == ["cuda:0", "0", "three tenths fit"]
    assert place(tmp_path, device, 3) == ["cuda:0", "0", "three tenths do not fit"]
