"""Baselines on disk: a later process loads them instead of computing them again.

A folder with one file for each baseline, which several processes and machines may use at once
without locks: a file appears complete, never changes, and may be deleted at any time.
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

from kvfidelity.atomic_files import replacing
from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.prefix import tensor_file
from kvfidelity.prefix.serialize import from_tensors, to_tensors


class DiskPrefixCache:
    """Keeps baselines of one engine in `folder`; the least recently used file is deleted first.

    Args:
        folder: created when the first baseline is stored; other engines may use it too.
        max_bytes: limit for all files in it; a larger baseline is not stored. Processes that write
            at the same time may exceed it by what they are writing.
        environment: what the numbers depend on apart from the key and this machine, such as the
            model's revision and the code.
    """

    def __init__(
        self, folder: Path, max_bytes: int, engine: Engine, environment: Mapping[str, str]
    ) -> None:
        self._folder, self._max_bytes, self._engine = folder, max_bytes, engine
        self._environment = dict(environment) | numeric_environment(engine.device)

    def load(self, key: str) -> BaselineRun | None:
        """The baseline under `key`, on the engine's device; None if there is no usable one.

        A corrupt file is deleted, with a line on standard error.
        """
        path = self._path(key)
        try:
            with tensor_file.open_tensor_file(path) as stored:
                run = from_tensors(stored, self._engine)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            _log(f"{path} is corrupt ({_first_line(error)}): {_deleted(path)}, computed again")
            return None
        except (RuntimeError, MemoryError) as error:  # it may fit the next time
            _log(f"{path} cannot be loaded ({_first_line(error)}): computed again")
            return None
        _note_use(path)
        return run

    def store(self, key: str, run: BaselineRun) -> None:
        """Store a finished baseline if it fits; a failure is a line on standard error."""
        if run.out_of_memory:
            return
        tensors, header_text = to_tensors(run)
        size = tensor_file.file_size(tensors, header_text)
        if size > self._max_bytes:
            return
        path = self._path(key)
        try:
            if path.exists():  # another process was faster
                return
            self._make_room(size)
            with replacing(path) as temporary:
                tensor_file.write_tensors(temporary, tensors, header_text)
            _note_use(path)
            self._make_room(0)
        except (OSError, RuntimeError, MemoryError) as error:
            _log(f"the baseline is not stored in {self._folder}: {_first_line(error)}")

    def _path(self, key: str) -> Path:
        hasher = hashlib.sha256(json.dumps([key, self._environment], sort_keys=True).encode())
        return self._folder / f"{hasher.hexdigest()[:32]}.safetensors"

    def _make_room(self, size: int) -> None:
        """Delete the least recently used files until `size` more bytes are within the limit.

        Half-written files count too, so what a killed process left is deleted in time.
        """
        if not self._folder.is_dir():
            return
        files = []
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                files.append((status.st_mtime_ns, status.st_size, file))
        excess = sum(length for _, length, _ in files) + size - self._max_bytes
        for _, length, file in sorted(files):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= length


def numeric_environment(device: torch.device) -> dict[str, str]:
    """The parts of a machine and its software that change the last bits of numbers."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # the number of threads changes how sums round
        capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        name = f"{_processor()} {capability}, {threads} threads"
    return {
        "device": f"{device.type} {name}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """The processor's model; on Linux only this file has it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _note_use(path: Path) -> None:
    """Set the file's time of last use to now; it may have been deleted already."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(path, ns=(now, now))


def _deleted(path: Path) -> str:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"not deleted ({_first_line(error)})"
    return "deleted"


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or repr(error)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
