"""A GGUF file that states more than a model has is refused in one line, before it is parsed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvfidelity.errors import UserError
from kvfidelity.models.convert import convert_gguf
from kvfidelity.models.gguf_bounds import check_header
from tests.models.tiny import write_gguf

UINT8, UINT32, TEXT, ARRAY = 0, 4, 8, 9


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def header(*keys: bytes, count: int | None = None, tensors: int = 0) -> bytes:
    stated = len(keys) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, stated) + b"".join(keys)


LLAMA = key(b"general.architecture", TEXT, text(b"llama"))
NESTED = array(ARRAY, 1) * 20_000 + array(UINT32, 1, b"\0" * 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(LLAMA, count=1 << 40), "states 1099511627776 keys"),
        (header(LLAMA, tensors=1 << 40), "1099511627776 tensors"),
        (header(struct.pack("<Q", 1 << 60) + b"abc"), "cut off in its header"),
        (header(LLAMA, key(b"a", ARRAY, array(UINT8, 1 << 40))), "more than 4,000,000 values"),
        (header(LLAMA, key(b"a", ARRAY, array(TEXT, 9 << 20))), "more than 4,000,000 values"),
        (header(LLAMA, key(b"a", ARRAY, NESTED)), "nested more than 4 levels"),
        (header(LLAMA, key(b"a", 77, b"")), "unknown type 77"),
        (header(LLAMA)[:-9], "cut off in its header|unpack_from requires"),
        (b"GGUF", "unpack_from requires"),
    ],
    ids=[
        "many keys",
        "many tensors",
        "a long text",
        "a long array",
        "many texts",
        "nested arrays",
        "another type",
        "cut off",
        "nothing but its mark",
    ],
)
def test_a_hostile_header_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"model\.gguf cannot be converted \(.*({message})"
    ) as error:
        convert_gguf(file, tmp_path)
    assert "\n" not in str(error.value)


def test_a_model_is_within_the_bounds(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=True)
    check_header(tmp_path / "tiny.gguf")
