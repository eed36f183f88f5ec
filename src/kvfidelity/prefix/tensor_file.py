"""Tensors and a note in one safetensors file that carries its own digest.

Written and read one tensor at a time: a snapshot of a long dialogue is gigabytes, and safetensors'
own functions would hold all of it once more in memory, or map a file that another machine may
delete meanwhile. The digest is the file's last tensor: SHA-256 of all bytes before its 32.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
DIGEST, DIGEST_BYTES = "sha256", hashlib.sha256().digest_size
BLOCK = 1 << 24


class CorruptFileError(ValueError):
    """The file is not what was written."""


class TensorFile:
    """An open file that is whole: its `note`, and tensors by name."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        length = int.from_bytes(file.read(8), "little")
        self._entries: dict[str, Any] = json.loads(file.read(length))
        self._data = file.tell()
        self.note: str = self._entries["__metadata__"]["note"]

    def __getitem__(self, name: str) -> Tensor:
        """A tensor of its own, on the CPU."""
        entry = self._entries[name]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        self._file.seek(self._data + entry["data_offsets"][0])
        if self._file.readinto(_bytes_of(tensor)) != _nbytes(tensor):
            raise CorruptFileError("it is shorter than it was a moment ago")
        return tensor


@contextmanager
def open_tensor_file(path: Path) -> Iterator[TensorFile]:
    """Open a file that `write` made.

    Raises:
        CorruptFileError: its content does not have its digest, or is none.
        OSError: it is not there, or cannot be read.
    """
    with path.open("rb") as file:
        if not _digest_matches(file, os.fstat(file.fileno()).st_size):
            raise CorruptFileError("its content does not have its digest")
        file.seek(0)
        yield TensorFile(file)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: str) -> None:
    """Write tensors (fp32, bf16, fp16 or uint8, of any device) and a note.

    Raises:
        OSError: the disk is full, the folder cannot be written to, and the like.
    """
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for part in _parts(tensors, note):
            hasher.update(part)
            file.write(part)
        file.write(hasher.digest())


def file_size(tensors: Mapping[str, Tensor], note: str) -> int:
    """Bytes that `write` would write."""
    return len(_header(tensors, note)) + sum(map(_nbytes, tensors.values())) + DIGEST_BYTES


def _digest_matches(file: BufferedReader, length: int) -> bool:
    hasher, left = hashlib.sha256(), length - DIGEST_BYTES
    while left > 0 and (block := file.read(min(left, BLOCK))):
        hasher.update(block)
        left -= len(block)
    return left == 0 and file.read(DIGEST_BYTES) == hasher.digest()


def _parts(tensors: Mapping[str, Tensor], note: str) -> Iterator[bytes | memoryview]:
    yield _header(tensors, note)
    yield from map(_bytes_of, _in_order(tensors).values())


def _header(tensors: Mapping[str, Tensor], note: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"note": note}}
    start = 0
    for name, tensor in _in_order(tensors).items():
        stop = start + _nbytes(tensor)
        entries[name] = _entry(DTYPE_NAMES[tensor.dtype], list(tensor.shape), start, stop)
        start = stop
    entries[DIGEST] = _entry("U8", [DIGEST_BYTES], start, start + DIGEST_BYTES)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def _in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide elements first, as safetensors has it: then each tensor is aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes if it is contiguous and on the CPU, or those of a copy that is."""
    array: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
