"""What a schema refuses, as one line with the remedy."""

from __future__ import annotations

import re
from typing import Any

import jsonschema

from kvfidelity.records.renamed import RENAMED_KEYS, RENAMED_VALUES
from kvfidelity.suggestions import did_you_mean, nearest

NAMES = "letters, digits, dots, dashes and underscores"
#: Keys whose value may be a secret that was written there by mistake.
NEVER_SHOWN = {"api_key_env", "base_url"}
#: Characters of a value, and of the path of a key, that messages show at most.
SHOWN, MAX_PATH = 100, 300


def most_specific(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error


def explain_error(error: jsonschema.ValidationError) -> str:
    path = ".".join(map(str, error.absolute_path))[:MAX_PATH] or "the top level"
    if error.absolute_path and error.absolute_path[-1] in NEVER_SHOWN:
        return f"{path}: the value must be a text in quotes, or null"
    value: Any = error.instance
    rule: Any = error.validator_value
    schema: Any = error.schema
    match error.validator:
        case "maxLength":
            what = "name" if "propertyNames" in error.absolute_schema_path else "text"
            size = f"has {len(value)} characters; at most {rule} are allowed"
            return f"{path}: the {what} {shown(value)} {size}"
        case "maxItems":
            return f"{path}: it has {len(value)} entries; at most {rule} are allowed"
        case "additionalProperties":
            known = schema.get("properties", {})
            name = next(key for key in value if key not in known)
            hint = _renamed(path, name) or did_you_mean(name, known)
            return f"{path}: unknown key {shown(name)}{hint}"
        case "required":
            missing = ", ".join(name for name in rule if name not in value)
            return f"{path}: {missing} must be given"
        case "enum" | "const":
            options = [str(option) for option in (rule if isinstance(rule, list) else [rule])]
            if RENAMED_VALUES.get(str(value)) in options:
                return f"{path}: {shown(value)} is now called {RENAMED_VALUES[str(value)]!r}"
            close = nearest(value, options)
            return f"{path}: {shown(value)} is not one of {', '.join(options)}{close}"
        case "format":
            return f"{path}: {error.cause}"
        case "pattern" if "propertyNames" in error.absolute_schema_path:
            return f"{path}: the name {shown(value)} may have {NAMES} only"
        case "pattern":
            close = nearest(value, schema.get("x-names", []))
            return f"{path}: {shown(value)} is not {schema.get('x-expected', rule)}{close}"
        case "minimum":
            return f"{path}: {value} is too small; it must be at least {rule}"
        case "maximum":
            return f"{path}: {value} is too large; it must be at most {rule}"
        case "exclusiveMinimum" if "maximum" in schema:
            return f"{path}: {value} must be above {rule} and at most {schema['maximum']}"
        case "exclusiveMinimum":
            return f"{path}: {value} must be above {rule}"
        case "type":
            kinds = rule if isinstance(rule, list) else [rule]
            if value is None:
                return f"{path}: it is empty; give it a value or remove its line"
            quotes = "string" in kinds and isinstance(value, bool | int | float)
            hint = "; put it in quotes" if quotes else ""
            return f"{path}: {shown(value)} must be of type {' or '.join(kinds)}{hint}"
        case _:
            return f"{path}: {error.message[:MAX_PATH]}"


def shown(value: object) -> str:
    """A value as Python writes it, cut."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _renamed(section: str, name: str) -> str | None:
    """What to add to "unknown ..." for a key that had this name before."""
    for (where, old), new in RENAMED_KEYS.items():
        if old == name and re.fullmatch(rf"{where}|{where}s\.[^.]+", section):
            return f"; it is now called {new!r}"
    return None
