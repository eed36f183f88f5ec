"""Options declared once, as dataclass fields: meaning, default and allowed values."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, Field, field, fields
from typing import Any

JSON_TYPES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}


def option(
    default: Any = MISSING,
    *,
    doc: str,
    low: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    changes_verdict: bool = True,
) -> Any:
    """A dataclass field that a config entry may set.

    Args:
        doc: its meaning, for the config's documentation.
        low, above: inclusive and exclusive lower bound.
        changes_verdict: whether another value can change a verdict; if so, it reruns the judge.
    """
    metadata = {"doc": doc, "minimum": low, "exclusiveMinimum": above, "enum": choices}
    return field(default=default, metadata={**metadata, "changes_verdict": changes_verdict})


def option_fields(cls: Any) -> list[Field[Any]]:
    """The fields of a dataclass that are options."""
    return [item for item in fields(cls) if "doc" in item.metadata]


def option_schemas(cls: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """JSON schema of each option of a dataclass, and the names of those without a default."""
    hints = typing.get_type_hints(cls)
    properties, required = {}, []
    for item in option_fields(cls):
        schema = _json_type(hints[item.name]) | {"description": item.metadata["doc"]}
        for key in ("minimum", "exclusiveMinimum", "enum"):
            value = item.metadata[key]
            if value is not None:
                schema[key] = list(value) if key == "enum" else value
        if item.default is MISSING:
            required.append(item.name)
        else:
            schema["default"] = item.default
        properties[item.name] = schema
    return properties, required


def _json_type(hint: Any) -> dict[str, Any]:
    if isinstance(hint, types.UnionType):
        return {"type": [JSON_TYPES[member] for member in typing.get_args(hint)]}
    return {"type": JSON_TYPES[hint]}
