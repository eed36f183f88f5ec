"""The schemas of the configuration, and the defaults that they give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kvfidelity.records.arms import ARMS, LOSSES
from kvfidelity.report.position_modes import position_mode_schema
from kvfidelity.strict_yaml import LOADER

SCHEMAS = Path(__file__).resolve().parent / "schemas"


@cache
def config_schema() -> dict[str, Any]:
    """The JSON schema of the configuration; policies have their own, see `policy_schemas`.

    Read once per process; do not change what is returned.
    """
    text = (SCHEMAS / "config.schema.yaml").read_text(encoding="utf-8")
    schema: dict[str, Any] = yaml.load(text, LOADER)
    modes = position_mode_schema()
    schema["$defs"]["position_mode"] = modes
    schema["$defs"]["grid"]["properties"]["positions"]["description"] = modes["description"]
    adapter = schema["$defs"]["adapter"]["properties"]
    adapter["arm"]["enum"], adapter["loss"]["enum"] = list(ARMS), list(LOSSES)
    return schema


@cache
def policy_schemas() -> dict[str, Any]:
    """JSON schema of each policy kind, made by `python -m kvfidelity.cache.policies.registry`."""
    schemas: dict[str, Any] = json.loads((SCHEMAS / "policies.json").read_text(encoding="utf-8"))
    return schemas


def healing_names() -> list[str]:
    """What a policy's entry may name as its healing."""
    return next(
        list(schema["properties"]["healing"]["enum"])
        for schema in policy_schemas().values()
        if "healing" in schema["properties"]
    )


def policy_entries(
    entry: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """A policy's entry and those of the policies that it wraps, each with the keys that lead there.

    A wrapped policy that is named by its kind alone becomes an entry.
    """
    yield path, dict(entry)
    known = policy_schemas().get(entry["kind"], {"properties": {}})["properties"]
    for name in dict.fromkeys([*known, *entry]):
        inner = entry.get(name, known.get(name, {}).get("default"))
        if known.get(name, {}).get("format") == "policy" and isinstance(inner, str):
            inner = {"kind": inner}
        if isinstance(inner, Mapping) and isinstance(inner.get("kind"), str):
            yield from policy_entries(inner, (*path, name))


def fill_defaults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    """Put the schema's defaults where keys are missing."""
    schema = _resolved(schema, root)
    if not isinstance(value, dict):
        return
    for key, inner in schema.get("properties", {}).items():
        resolved = _resolved(inner, root)
        if key not in value and "default" in resolved:
            value[key] = json.loads(json.dumps(resolved["default"]))
        elif key not in value and resolved.get("type") == "object" and _optional_section(resolved):
            value[key] = {}
        if key in value:
            fill_defaults(value[key], inner, root)
    rest = schema.get("additionalProperties")
    if isinstance(rest, dict):
        for key in value:
            fill_defaults(value[key], rest, root)


def _optional_section(schema: Mapping[str, Any]) -> bool:
    inner = schema.get("properties", {})
    return (
        bool(inner) and not schema.get("required") and any("default" in s for s in inner.values())
    )


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(schema)
    if "$ref" in merged:
        target = root["$defs"][merged.pop("$ref").rsplit("/", 1)[1]]
        merged = {**_resolved(target, root), **merged}
    return merged
