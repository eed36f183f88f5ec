"""A policy that causes a chosen fault at an eviction, to test workers."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, parameter, slot_indices
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class FaultPolicy(Policy):
    """Keeps the last slots, after causing a fault.

    Before each fault, this process's id is written to `marker` as a line. No fault happens once the
    file has `times` lines.
    """

    kind: ClassVar[str] = "fault_policy"

    fault: str = parameter("none", doc="the fault")
    marker: str = parameter("", doc="a file")
    times: int = parameter(10**6, doc="number of faults")

    def priority(self, view: CacheView) -> Tensor:
        if self.fault == "none":
            return slot_indices(view)
        marker = Path(self.marker)
        done = len(marker.read_text().splitlines()) if marker.exists() else 0
        if done < self.times:
            with marker.open("a") as file:
                file.write(f"{os.getpid()}\n")
            self._cause_fault()
        return slot_indices(view)

    def _cause_fault(self) -> None:
        match self.fault:
            case "write":
                print("a warning from deep inside", file=sys.stderr)
            case "sleep":  # longer than any test waits
                time.sleep(3600)
            case "hold":  # until the test lets go
                while not Path(f"{self.marker}.go").exists():
                    time.sleep(0.02)
            case "crash":
                ctypes.string_at(0)
            case "raise":
                raise ZeroDivisionError("no such thing")
            case "exit":
                sys.exit("no way out")
            case "exhaust memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            case "exhaust more memory":
                raise MemoryError("none left")
            case "fill disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results")
