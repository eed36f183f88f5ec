"""The configuration: checked against its schema, defaults filled in, errors in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.errors import UserError
from kvfidelity.judges.registry import judge_schema, known_judges
from kvfidelity.records.grid import BASELINE, NO_THRESHOLD, cells
from kvfidelity.records.renamed import RENAMED_KEYS, RENAMED_VALUES
from kvfidelity.report.position_modes import position_mode_schema
from kvfidelity.sizes import parse_size
from kvfidelity.suggestions import did_you_mean, nearest

SCHEMAS = Path(__file__).resolve().parent / "schemas"
NAMES = "letters, digits, dots, dashes and underscores"


def load_settings(config: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """A checked copy of a configuration with every default filled in.

    Args:
        config: as read from YAML.
        where: its name in messages, such as the file's name.

    Raises:
        UserError: the first thing that is wrong, its path, and the remedy.
    """
    settings = _as_json_types(config, where)
    schema = config_schema()
    validator = jsonschema.Draft202012Validator(schema, format_checker=_formats())
    errors = sorted(validator.iter_errors(settings), key=lambda error: list(map(str, error.path)))
    if errors:
        raise UserError(f"{where}: {_explain_error(_most_specific(errors[0]))}")
    _fill_defaults(settings, schema, schema)
    for policy, entry in settings["policies"].items():
        _check_policy(policy, entry, bool(settings["policy_files"]), where)
    _check_thresholds(settings, where)
    _check_names(settings, where)
    _check_dialogue_formats(settings, where)
    _check_judges(settings, where)
    _check_grid(settings, where)
    return settings


def read_settings(files: Sequence[Path]) -> dict[str, Any]:
    """Configuration files merged in order, as Snakemake merges them, and checked.

    Raises:
        UserError: a file cannot be read, or what is wrong with the configuration.
    """
    config: dict[str, Any] = {}
    for file in files:
        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file} cannot be read as YAML: {reason}") from None
        config = _merged(config, read or {})
    return load_settings(config, " + ".join(map(str, files)))


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out


@cache
def config_schema() -> dict[str, Any]:
    """The JSON schema of the configuration; policies have their own, see `policy_schemas`.

    Read once per process; do not change what is returned.
    """
    text = (SCHEMAS / "config.schema.yaml").read_text(encoding="utf-8")
    schema: dict[str, Any] = yaml.safe_load(text)
    modes = position_mode_schema()
    schema["$defs"]["position_mode"] = modes
    schema["$defs"]["grid"]["properties"]["positions"]["description"] = modes["description"]
    return schema


@cache
def policy_schemas() -> dict[str, Any]:
    """JSON schema of each policy kind, made by `python -m kvfidelity.cache.policies.registry`."""
    schemas: dict[str, Any] = json.loads((SCHEMAS / "policies.json").read_text(encoding="utf-8"))
    return schemas


def _as_json_types(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy in JSON's types; YAML also has dates, and numbers that are not finite."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
    except TypeError as error:
        what = str(error).split()[3]
        raise UserError(f"{where}: a value is read as a {what}; put it in quotes") from None
    except ValueError:
        raise UserError(f"{where}: .nan and .inf are not allowed; write a finite number") from None
    return plain


def _formats() -> jsonschema.FormatChecker:
    checker = jsonschema.FormatChecker(formats=())

    @checker.checks("size", raises=UserError)
    def is_size(value: object) -> bool:
        if isinstance(value, str):
            parse_size(value)
        return True

    return checker


def _most_specific(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error


def _explain_error(error: jsonschema.ValidationError) -> str:
    path = ".".join(map(str, error.absolute_path)) or "the top level"
    value: Any = error.instance
    rule: Any = error.validator_value
    schema: Any = error.schema
    match error.validator:
        case "additionalProperties":
            known = schema.get("properties", {})
            name = next(key for key in value if key not in known)
            return (
                f"{path}: unknown key {name!r}{_renamed(path, name) or did_you_mean(name, known)}"
            )
        case "required":
            missing = ", ".join(name for name in rule if name not in value)
            return f"{path}: {missing} must be given"
        case "enum" | "const":
            options = [str(option) for option in (rule if isinstance(rule, list) else [rule])]
            if RENAMED_VALUES.get(str(value)) in options:
                return f"{path}: {value!r} is now called {RENAMED_VALUES[value]!r}"
            return f"{path}: {value!r} is not one of {', '.join(options)}{nearest(value, options)}"
        case "format":
            return f"{path}: {error.cause}"
        case "pattern" if "propertyNames" in error.absolute_schema_path:
            return f"{path}: the name {value!r} may have {NAMES} only"
        case "pattern":
            return f"{path}: {value!r} is not a SHA-256 in lower-case hex (64 digits)"
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
            return f"{path}: {value!r} must be of type {' or '.join(kinds)}"
        case _:
            return f"{path}: {error.message}"


def _renamed(section: str, name: str) -> str | None:
    """What to add to "unknown ..." for a key that had this name before."""
    for (where, old), new in RENAMED_KEYS.items():
        if old == name and re.fullmatch(rf"{where}|{where}s\.[^.]+", section):
            return f"; it is now called {new!r}"
    return None


def _fill_defaults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
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
            _fill_defaults(value[key], inner, root)
    rest = schema.get("additionalProperties")
    if isinstance(rest, dict):
        for key in value:
            _fill_defaults(value[key], rest, root)


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


def _check_policy(name: str, entry: Mapping[str, Any], has_policy_files: bool, where: str) -> None:
    schemas = policy_schemas()
    kind = entry["kind"]
    if kind not in schemas:
        if has_policy_files:
            return  # user-defined; checked where the files are imported
        raise UserError(
            f"{where}: policies.{name}: unknown kind {kind!r}{did_you_mean(kind, schemas)}"
        )
    validator = jsonschema.Draft202012Validator(schemas[kind])
    for error in validator.iter_errors(dict(entry)):
        error.path.extendleft((name, "policies"))
        raise UserError(f"{where}: {_explain_error(error)}")


def _check_thresholds(settings: Mapping[str, Any], where: str) -> None:
    if NO_THRESHOLD in settings["thresholds"]:
        raise UserError(
            f"{where}: thresholds.{NO_THRESHOLD}: the name means no eviction; choose another"
        )
    for name, entry in settings["thresholds"].items():
        if entry["trigger"] == "paper" and "target" in entry:
            raise UserError(
                f"{where}: thresholds.{name}: trigger paper takes no target, its policies keep "
                "their own size"
            )
        if entry["trigger"] != "paper" and "target" in entry:
            at, target = parse_size(entry["at"]), parse_size(entry["target"])
            if at[1] == target[1] and target[0] >= at[0]:
                raise UserError(f"{where}: thresholds.{name}: target must be below `at`")


def _check_names(settings: Mapping[str, Any], where: str) -> None:
    lists = {name: settings["grid"][name] for name in ("models", "datasets", "policies")}
    lists |= {"thresholds": settings["grid"]["thresholds"]}
    for section, names in lists.items():
        for name in [] if names == "all" else names:
            if name not in settings[section]:
                known = settings[section]
                raise UserError(f"{where}: grid.{section}: no {name!r}{did_you_mean(name, known)}")
    for name in settings["judging"]:
        if name not in settings.get("judges", {}):
            known = settings.get("judges", {})
            raise UserError(f"{where}: judging: no judge {name!r}{did_you_mean(name, known)}")


def _check_dialogue_formats(settings: Mapping[str, Any], where: str) -> None:
    known = list(known_formats(settings["format_files"]))
    for name, entry in settings["datasets"].items():
        if entry["format"] not in known:
            raise UserError(
                f"{where}: datasets.{name}.format: {entry['format']!r} is not one of "
                f"{', '.join(known)}{nearest(entry['format'], known)}"
            )


def _check_judges(settings: Mapping[str, Any], where: str) -> None:
    known = known_judges(settings["judge_files"])
    for name, entry in settings.get("judges", {}).items():
        kind = entry["kind"]
        unknown: dict[str, Any] = {"properties": {"kind": {"enum": [*known]}}}
        schema = judge_schema(known[kind]) if kind in known else unknown
        for error in jsonschema.Draft202012Validator(schema).iter_errors(entry):
            error.path.extendleft((name, "judges"))
            raise UserError(f"{where}: {_explain_error(error)}")
        _fill_defaults(entry, schema, schema)
        if entry["rubric"] == "pairwise" and not known[kind].compares:
            others = ", ".join(other for other in known if known[other].compares)
            raise UserError(
                f"{where}: judges.{name}: kind {kind} compares nothing; use another rubric, or a "
                f"judge of a kind that compares ({others})"
            )
        if entry["rubric"] != "pairwise" and not known[kind].scores:
            raise UserError(
                f"{where}: judges.{name}: kind {kind} gives no scores; use rubric pairwise"
            )
        if entry.get("max_usd") is not None and entry.get("model") not in settings["prices"]:
            raise UserError(
                f"{where}: judges.{name}: max_usd needs the model's price, dollars per million "
                f"tokens: add `prices: {{{entry.get('model')}: {{input: ..., output: ...}}}}`"
            )


def _check_grid(settings: Mapping[str, Any], where: str) -> None:
    sections = {"model": "models", "dataset": "datasets", "policy": "policies"}
    sections |= {"threshold": "thresholds"}
    for field in ("include", "exclude"):
        for number, pattern in enumerate(settings["grid"][field]):
            for key, section in sections.items():
                known = [*settings[section], *([NO_THRESHOLD] if key == "threshold" else [])]
                if key in pattern and pattern[key] not in known:
                    path, name = f"grid.{field}.{number}.{key}", pattern[key]
                    raise UserError(f"{where}: {path}: no {name!r}{did_you_mean(name, known)}")
            if field == "include" and pattern.get("threshold") == NO_THRESHOLD:
                raise UserError(
                    f"{where}: grid.include.{number}.threshold: {NO_THRESHOLD!r} is added "
                    "automatically"
                )
    if all(entry["kind"] != BASELINE for entry in settings["policies"].values()):
        raise UserError(
            f"{where}: policies: one of kind {BASELINE} is needed, all others are compared with "
            f"it; add `{BASELINE}: {{kind: {BASELINE}}}`"
        )
    if not cells(settings):
        raise UserError(f"{where}: grid: nothing is left to run; check its lists and `exclude`")
