"""The name of the processor or the GPU that a worker computes on."""

from __future__ import annotations

import os
import platform
import stat
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Such as "Intel(R) Xeon(R) Platinum 8481C"; the architecture where the system names no model.

    Args:
        cpuinfo: Linux's list of processors.
    """
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":") for line in lines)
    found = (value.strip() for key, _, value in names if key.strip() == "model name")
    return next((name for name in found if name), platform.machine())


def gpu_name(name: str) -> str:
    """Such as "NVIDIA H200", or "NVIDIA H200 with MPS" where CUDA's Multi-Process Service is used.

    With it kernels of several processes run at once, so times are others.

    Args:
        name: the GPU's own.
    """
    # As in https://docs.nvidia.com/deploy/mps: a process uses it if the daemon's socket is there.
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    try:
        served = stat.S_ISSOCK((pipes / "control").stat().st_mode)
    except OSError:
        served = False
    return f"{name} with MPS" if served else name
