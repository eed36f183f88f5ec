"""The name of the processor that a worker computes on."""

from __future__ import annotations

import platform
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
