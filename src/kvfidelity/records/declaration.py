"""How a table's columns are declared: one class per table, one annotated line per column.

    class Integrity:
        stage = "generate"
        retained_share: Annotated[Dtype, "share", "cached slots per token seen"] = pl.Float64

The value is the dtype. The annotation holds the unit ("" for names, texts and flags) and the
meaning: it documents the column and is not part of the code that a stage's digest covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

#: A polars dtype: polars takes classes and instances.
Dtype = Any


@dataclass(frozen=True)
class ColumnInfo:
    """One declared column. stage: what writes its values: a stage of the workflow."""

    name: str
    dtype: Any
    unit: str
    meaning: str
    stage: str


def columns(*tables: type) -> list[ColumnInfo]:
    """The columns that classes declare, in order."""
    found = []
    for table in tables:
        hints = get_type_hints(table, include_extras=True)
        for name, dtype in vars(table).items():
            if name in hints:
                unit, meaning = hints[name].__metadata__
                found.append(ColumnInfo(name, dtype, unit, meaning, table.__dict__["stage"]))
    return found


def schema(*tables: type) -> dict[str, Any]:
    """Name and dtype of the columns that classes declare, in order, as polars takes a schema."""
    return {
        name: dtype
        for table in tables
        for name, dtype in vars(table).items()
        if name in table.__annotations__
    }
