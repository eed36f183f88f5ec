"""A safetensors file of tensors and a note, ending with its own digest.

Why not safetensors' own functions: the file of a long dialogue is gigabytes, and the workflow's
folder is often on a network file system.
- `save_file` takes contiguous tensors on the CPU, all at once. Cached keys and values are views of
  larger buffers, often on a GPU, so the whole run would be copied before the first byte is written.
  Here one tensor at a time is copied.
- `safe_open` maps the file. If another machine deletes it meanwhile, reading a mapped page ends the
  process (SIGBUS). Here the read fails with an OSError, and the run is computed again. `load` maps
  nothing, but holds the file's bytes and all tensors at the same time.
- Neither has a digest. Here the last tensor is the SHA-256 of all bytes before its own 32.

The format is plain safetensors: `safe_open` reads these files.
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
    """The file's content is not what was written."""


class TensorFile:
    """An open file whose digest was checked: its `note`, and tensors by name."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        length = int.from_bytes(file.read(8), "little")
        self._entries: dict[str, Any] = json.loads(file.read(length))
        self._data = file.tell()
        self.note: str = self._entries["__metadata__"]["note"]

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor into new memory on the CPU.

        Raises:
            KeyError: no such tensor.
            CorruptFileError: the file was cut short since its digest was checked.
            OSError: the file cannot be read any more.
        """
        entry = self._entries[name]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        self._file.seek(self._data + entry["data_offsets"][0])
        if self._file.readinto(_bytes_of(tensor)) != _nbytes(tensor):
            raise CorruptFileError("it was cut short while it was read")
        return tensor


@contextmanager
def open_tensor_file(path: Path) -> Iterator[TensorFile]:
    """Open a file of `write_tensors` and check its digest.

    Raises:
        CorruptFileError: the digest does not match.
        OSError: the file does not exist or cannot be read.
    """
    with path.open("rb") as file:
        if not _digest_matches(file, os.fstat(file.fileno()).st_size):
            raise CorruptFileError("digest mismatch")
        file.seek(0)
        yield TensorFile(file)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: str) -> None:
    """Write tensors (fp32, bf16, fp16 or uint8, of any device) and a note.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for part in _parts(tensors, note):
            hasher.update(part)
            file.write(part)
        file.write(hasher.digest())


def file_size(tensors: Mapping[str, Tensor], note: str) -> int:
    """Size in bytes of the file that `write_tensors` would write."""
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
    """Wide elements first, as in safetensors: then every tensor is aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, without a copy if it is contiguous and on the CPU."""
    array: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
