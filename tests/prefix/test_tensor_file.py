"""A tensor file is read as it was written, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from kvfidelity.prefix.tensor_file import (
    CorruptFileError,
    file_size,
    open_tensor_file,
    write_tensors,
)

NOTE = '{"text": "naïve"}'
PARTS = {
    "odd": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16),
    "sliced": torch.arange(24, dtype=torch.float32).view(2, 3, 4)[:, :2],
    "nothing": torch.empty(0),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.tensor([[float("nan"), 2.0]], dtype=torch.float16),
}


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("block", [7, 1 << 24])
def test_tensors_and_note_are_read_as_written(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvfidelity.prefix.tensor_file.BLOCK", block)
    file = tmp_path / "file"
    write_tensors(file, PARTS, NOTE)
    assert file.stat().st_size == file_size(PARTS, NOTE)
    with open_tensor_file(file) as stored:
        assert stored.note == NOTE
        for name, tensor in PARTS.items():
            found = stored[name]
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert bits(found) == bits(tensor)
        with pytest.raises(KeyError):
            stored["other"]


def test_safetensors_reads_it_without_copying(tmp_path: Path) -> None:
    """Every tensor is aligned, so its mapped pages can be used directly."""
    write_tensors(tmp_path / "file", PARTS, NOTE)
    with safe_open(tmp_path / "file", "pt") as stored:
        assert stored.metadata() == {"note": NOTE}
        for name, tensor in PARTS.items():
            found = stored.get_tensor(name)
            assert bits(found) == bits(tensor)
            assert found.data_ptr() % found.element_size() == 0


@given(offset=st.integers(0, file_size(PARTS, NOTE) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_seen(
    tmp_path_factory: pytest.TempPathFactory, offset: int, bit: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "flipped"
    write_tensors(file, PARTS, NOTE)
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(CorruptFileError), open_tensor_file(file):
        pass


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 100])
def test_a_file_cut_short_is_seen(tmp_path: Path, length: int) -> None:
    file = tmp_path / "file"
    write_tensors(file, PARTS, NOTE)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CorruptFileError), open_tensor_file(file):
        pass


def test_a_file_that_shrinks_while_it_is_read_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_tensors(file, {"long": torch.zeros(100_000)}, NOTE)
    with pytest.raises(CorruptFileError), open_tensor_file(file) as stored:
        with file.open("r+b") as other:
            other.truncate(1000)
        stored["long"]
