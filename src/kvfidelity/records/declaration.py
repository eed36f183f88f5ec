"""How a table's columns are declared: one class per table, one annotated line per column.

    class Integrity:
        stage = "generate"
        retained_share: Annotated[Dtype, "share", "cached slots per token seen"] = pl.Float64

The value is the dtype. The annotation holds the unit ("" for names, texts and flags) and the
meaning: it documents the column and is not part of the code that a stage's digest covers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

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


def at_end(table: type, *, without: Collection[str]) -> type:
    """The columns of `table` once more, as they are at the end of a reply: `NAME_at_end`."""
    hints = get_type_hints(table, include_extras=True)
    names = [name for name in vars(table) if name in hints and name not in without]
    annotations = {}
    for name in names:
        unit, _ = hints[name].__metadata__
        annotations[f"{name}_at_end"] = Annotated[Dtype, unit, f"{name}, when the reply has ended"]
    values = {f"{name}_at_end": vars(table)[name] for name in names}
    body = {"stage": vars(table)["stage"], "__annotations__": annotations, **values}
    return type(f"{table.__name__}AtEnd", (), body | {"__module__": table.__module__})


def schema(*tables: type) -> dict[str, Any]:
    """Name and dtype of the columns that classes declare, in order, as polars takes a schema."""
    return {
        name: dtype
        for table in tables
        for name, dtype in vars(table).items()
        if name in table.__annotations__
    }
