"""A table's columns and their types, as the text that content digests begin with.

The text is defined here, since how Python and polars print a schema differs between their versions.
It equals what Python 3.11 and polars 1 and 2 print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvfidelity.errors import UserError

NAMES: dict[type[pl.DataType], str] = {
    pl.Boolean: "Boolean",
    pl.Float32: "Float32",
    pl.Float64: "Float64",
    pl.Int8: "Int8",
    pl.Int16: "Int16",
    pl.Int32: "Int32",
    pl.Int64: "Int64",
    pl.Null: "Null",
    pl.String: "String",
    pl.UInt8: "UInt8",
    pl.UInt16: "UInt16",
    pl.UInt32: "UInt32",
    pl.UInt64: "UInt64",
}


def schema_text(schema: Mapping[str, pl.DataType]) -> str:
    """One line: Schema([('turn', Int32), ('runs', List(Struct({'start': Int32})))]).

    Raises:
        UserError: a column has a type that artifacts do not have.
    """
    columns = ", ".join(f"({name!r}, {type_text(dtype)})" for name, dtype in schema.items())
    return f"Schema([{columns}])" if columns else "Schema()"


def type_text(given: Any) -> str:
    """A column's type, nested ones included."""
    # Types inside types may be given as classes: pl.List(pl.Int32).
    dtype = given() if isinstance(given, type) else given
    if isinstance(dtype, pl.List):
        return f"List({type_text(dtype.inner)})"
    if isinstance(dtype, pl.Struct):
        fields = ", ".join(f"{field.name!r}: {type_text(field.dtype)}" for field in dtype.fields)
        return f"Struct({{{fields}}})"
    if type(dtype) not in NAMES:
        raise UserError(
            f"artifacts cannot hold columns of type {dtype}: cast them, or add the type to "
            "schema_text.NAMES"
        )
    return NAMES[type(dtype)]
