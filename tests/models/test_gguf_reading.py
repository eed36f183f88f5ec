"""A conversion parses its file once, and leaves the package `gguf` as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from kvfidelity.errors import UserError
from kvfidelity.models.convert import convert_gguf
from kvfidelity.models.gguf_reading import PlainReader, parsed_once
from tests.models.tiny import write_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", quantised=True)
    return tmp_path / "tiny.gguf"


def test_a_conversion_parses_its_file_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            called.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, counting)

    counted(gguf.GGUFReader, "_build_fields")
    counted(gguf, "get_tensor_name_map")
    (tmp_path / "model").mkdir()
    convert_gguf(file, tmp_path / "model")
    assert sorted(called) == ["_build_fields", "get_tensor_name_map"]


def test_the_package_is_as_before_also_after_a_fault(file: Path, tmp_path: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"broken.gguf cannot be converted"):
        convert_gguf(broken, tmp_path / "model")
    with parsed_once():
        assert gguf.GGUFReader(file) is gguf.GGUFReader(str(file))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_its_reader_reads_what_the_packages_reader_reads(file: Path) -> None:
    ours, theirs = PlainReader(file), gguf.GGUFReader(file)
    assert list(ours.fields) == list(theirs.fields)
    assert all(ours.fields[key].contents() == theirs.fields[key].contents() for key in ours.fields)
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
        assert np.array_equal(one.data, other.data)
