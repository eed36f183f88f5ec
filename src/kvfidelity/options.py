"""Options declared once, as dataclass fields: meaning, default and allowed values."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any

JSON_TYPES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}
#: The upper bound of a number that declares none, which a 32-bit integer holds.
MOST = 10**9


def option(
    default: Any = MISSING,
    *,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    odd: bool = False,
    check: Callable[[Any], str | None] | None = None,
    schema: Mapping[str, Any] | None = None,
    changes_verdict: bool = True,
) -> Any:
    """A dataclass field that a config entry may set.

    Args:
        default: its value if the config does not set it; without one it is required.
        doc: its meaning, for the config's documentation.
        low, high: inclusive bounds; a number's `high` is MOST by default.
        above: an exclusive lower bound.
        choices: the allowed strings. odd: only odd numbers are allowed.
        check: says what is wrong with a value; None if it is allowed.
        schema: the JSON schema of what a config may say, where it is not that of the field's type.
        changes_verdict: of a judge's option, whether another value can change a verdict; if so, it
            reruns the judge.
    """
    metadata: dict[str, Any] = {
        "doc": doc,
        "minimum": low,
        "maximum": high,
        "exclusiveMinimum": above,
    }
    metadata |= {"enum": choices, "odd": odd, "check": check, "changes_verdict": changes_verdict}
    metadata |= {"schema": schema}
    return field(default=default, metadata=metadata)


def option_fields(cls: Any) -> list[Field[Any]]:
    """The fields of a dataclass that are options."""
    return [item for item in fields(cls) if "doc" in item.metadata]


def option_schemas(cls: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """JSON schema of each option of a dataclass, and the names of those without a default."""
    hints = typing.get_type_hints(cls)
    properties, required = {}, []
    for item in option_fields(cls):
        own = item.metadata["schema"]
        schema = dict(own) if own is not None else _json_type(hints[item.name])
        schema |= {"description": item.metadata["doc"]}
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        is_number = not {"integer", "number"}.isdisjoint(kinds)
        for key in ("minimum", "maximum", "exclusiveMinimum", "enum"):
            value = item.metadata[key]
            if key == "maximum" and value is None and is_number:
                value = MOST
            if value is not None:
                schema[key] = list(value) if key == "enum" else value
        if item.metadata["odd"]:
            schema["not"] = {"multipleOf": 2}
        if item.default is MISSING:
            required.append(item.name)
        else:
            schema["default"] = item.default
        properties[item.name] = schema
    return properties, required


def option_faults(cls: Any, values: Mapping[str, Any]) -> Iterator[str]:
    """What the options' own checks say of the values that are given, each with its key."""
    for item in option_fields(cls):
        check = item.metadata["check"]
        if check and item.name in values and (fault := check(values[item.name])):
            yield f"{item.name}: {fault}"


def check_option(item: Field[Any], hint: Any, value: Any) -> str | None:
    """What is wrong with the value of an option; None if it is allowed.

    Args:
        hint: the field's type.
    """
    return _wrong_type(item.name, hint, value) or _out_of_bounds(item, value)


def _wrong_type(name: str, hint: Any, value: Any) -> str | None:
    kinds = typing.get_args(hint) or (hint,)
    if not all(isinstance(member, type) for member in kinds):
        return None
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(member.__name__ for member in kinds)
        return f"{name} is {value!r}; it must be of type {expected}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}; it must be a finite number"
    return None


def _out_of_bounds(item: Field[Any], value: Any) -> str | None:
    name, allowed = item.name, item.metadata
    low, high, above = allowed["minimum"], allowed["maximum"], allowed["exclusiveMinimum"]
    if allowed["enum"] and value not in allowed["enum"]:
        return f"{name} is {value!r}; choose one of {', '.join(allowed['enum'])}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    high = MOST if high is None else high
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if too_low or value > high:
        lower = f"above {above}" if above is not None else f"at least {low}"
        lower = f"{lower} and " if above is not None or low is not None else ""
        return f"{name} is {value}; it must be {lower}at most {high}"
    if allowed["odd"] and value % 2 == 0:
        return f"{name} is {value}; it must be an odd number"
    return None


def _json_type(hint: Any) -> dict[str, Any]:
    if isinstance(hint, types.UnionType):
        return {"type": [JSON_TYPES[member] for member in typing.get_args(hint)]}
    return {"type": JSON_TYPES[hint]}
