"""Parquet files that no library writes: a footer in Thrift's compact protocol, byte by byte."""

from __future__ import annotations

import struct

I32, BINARY, LIST, STRUCT, I64 = 5, 8, 9, 12, 6


def nested_schema(levels: int) -> bytes:
    """A file without rows whose one column is that many groups deep."""
    elements = [_element(children=1) for _ in range(levels)] + [_element(children=None)]
    schema = bytes([0xF0 | STRUCT]) + _varint(len(elements)) + b"".join(elements)
    no_row_groups = bytes([STRUCT])
    # FileMetaData: 1 version, 2 schema, 3 num_rows, 4 row_groups; fields are numbered by distance.
    footer = bytes([0x10 | I32]) + _varint(2) + bytes([0x10 | LIST]) + schema
    footer += bytes([0x10 | I64]) + _varint(0) + bytes([0x10 | LIST]) + no_row_groups + b"\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _element(children: int | None) -> bytes:
    """SchemaElement: 1 type, 3 repetition, 4 name, 5 children."""
    kind = b"" if children else bytes([0x10 | I32]) + _varint(2)
    repetition = bytes([(0x30 if children else 0x20) | I32]) + _varint(2)
    name = bytes([0x10 | BINARY]) + _varint(1) + b"a"
    below = bytes([0x10 | I32]) + _varint(2 * children) if children else b""
    return kind + repetition + name + below + b"\0"


def _varint(number: int) -> bytes:
    content = b""
    while number > 127:
        content += bytes([number & 127 | 128])
        number >>= 7
    return content + bytes([number])
