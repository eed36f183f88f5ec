"""Never evicted runs on disk: a later process goes on from them instead of computing them anew.

A folder of snapshots, one file each, which several processes and machines may use at once. Nobody
takes a lock: a file is whole or absent, is never changed, and may vanish at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from kvfidelity.artifacts import replacing
from kvfidelity.session.engine import Engine
from kvfidelity.session.prefix import tensorfile
from kvfidelity.session.prefix.full import FullRun
from kvfidelity.session.prefix.snapshot import put_together, taken_apart


class Shelf:
    """Keeps runs of one engine in `folder`, the least recently used of all engines' going first.

    Args:
        folder: made when something is kept.
        max_bytes: of all files in it; a run larger than that is not kept. While several processes
            write at once it may be passed by what they write.
        about: what else than the run's key and this machine its numbers depend on, such as the
            model's revision and the code.
    """

    def __init__(
        self, folder: Path, max_bytes: int, engine: Engine, about: Mapping[str, str]
    ) -> None:
        self._folder, self._max_bytes, self._engine = folder, max_bytes, engine
        self._about = dict(about) | surroundings(engine.device)

    def take(self, key: str) -> FullRun | None:
        """The run under `key`, on the engine's device; None if there is none.

        One that is damaged or cannot be read is removed, and standard error says so.
        """
        place = self._place(key)
        try:
            with tensorfile.opened(place) as stored:
                run = put_together(stored, self._engine)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            _say(f"{place} is damaged ({_first_line(error)}): {_removed(place)}, computed anew")
            return None
        except (RuntimeError, MemoryError) as error:  # it may fit another time
            _say(f"{place} cannot be loaded ({_first_line(error)}): computed anew")
            return None
        _touch(place)
        return run

    def keep(self, key: str, run: FullRun) -> None:
        """Keep a run, if its memory sufficed and there is room; standard error says what failed."""
        if run.out_of_memory:
            return
        tensors, note = taken_apart(run)
        size = tensorfile.size(tensors, note)
        if size > self._max_bytes:
            return
        place = self._place(key)
        try:
            if place.exists():  # another process was faster
                return
            self._make_room(size)
            with replacing(place) as temporary:
                tensorfile.write(temporary, tensors, note)
            _touch(place)
            self._make_room(0)
        except (OSError, RuntimeError, MemoryError) as error:
            _say(f"the run without evictions is not kept in {self._folder}: {_first_line(error)}")

    def _place(self, key: str) -> Path:
        told = hashlib.sha256(json.dumps([key, self._about], sort_keys=True).encode())
        return self._folder / f"{told.hexdigest()[:32]}.safetensors"

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes are within the bound.

        Half-written files count: one that a killed process left grows old like any other.
        """
        if not self._folder.is_dir():
            return
        files = []
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                state = file.stat()
                files.append((state.st_mtime_ns, state.st_size, file))
        excess = sum(length for _, length, _ in files) + size - self._max_bytes
        for _, length, file in sorted(files):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= length


def surroundings(device: torch.device) -> dict[str, str]:
    """What of a machine and its software numbers depend on to the last bit."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # sums round by how they are split among threads
        capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        name = f"{_processor()} {capability}, {threads} threads"
    return {
        "device": f"{device.type} {name}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """The processor's model; Linux tells it nowhere but here."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _touch(place: Path) -> None:
    """Note its use, in nanoseconds: the system's own note is coarser. It may be gone already."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(place, ns=(now, now))


def _removed(place: Path) -> str:
    try:
        place.unlink(missing_ok=True)
    except OSError as error:
        return f"not removed ({_first_line(error)})"
    return "removed"


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or repr(error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
