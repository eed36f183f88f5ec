"""The configuration: checked against its schema, defaults filled in, each error one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from kvfidelity.dialogues.formats.registry import known_formats
from kvfidelity.errors import UserError
from kvfidelity.judges.base import Judge
from kvfidelity.judges.registry import judge_schema, known_judges
from kvfidelity.options import option_faults
from kvfidelity.pipeline.schema_validator import SchemaValidator
from kvfidelity.records.grid import BASELINE, NO_THRESHOLD, cells
from kvfidelity.records.renamed import RENAMED_KEYS, RENAMED_VALUES
from kvfidelity.report.position_modes import position_mode_schema
from kvfidelity.sizes import most_host_bytes, parse_size
from kvfidelity.strict_yaml import read_yaml
from kvfidelity.suggestions import did_you_mean, nearest

SCHEMAS = Path(__file__).resolve().parent / "schemas"
NAMES = "letters, digits, dots, dashes and underscores"
#: Keys whose value may be a secret that was written there by mistake.
NEVER_SHOWN = {"api_key_env", "base_url"}
UNUSABLE = re.compile("[\0\ud800-\udfff]")
LARGEST_INTEGER = 2**63 - 1


def load_settings(config: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """A checked copy of a configuration with every default filled in.

    Args:
        config: as read from YAML.
        where: its name in messages, such as the file's name.

    Raises:
        UserError: everything that is wrong, one line each, with its path and the remedy.
    """
    settings = _as_json_types(config, where)
    schema = config_schema()
    validator = SchemaValidator(schema, format_checker=_formats())
    errors = sorted(validator.iter_errors(settings), key=lambda error: list(map(str, error.path)))
    _raise([_explain_error(_most_specific(error)) for error in errors], where)
    _fill_defaults(settings, schema, schema)
    checks = (
        _check_dialogue_formats,
        _check_datasets,
        _check_policies,
        _check_thresholds,
        _check_names,
        _check_judges,
        _check_cases,
    )
    _raise([fault for check in checks for fault in check(settings)], where)
    _raise(list(_check_grid(settings)), where)
    return settings


def _raise(faults: Sequence[str], where: str) -> None:
    if faults:
        # Alternatives of a schema name one fault more than once.
        raise UserError("\n".join(f"{where}: {fault}" for fault in dict.fromkeys(faults)))


def read_settings(files: Sequence[Path], default: Path | None = None) -> dict[str, Any]:
    """Configuration files merged in order, as Snakemake merges them, and checked.

    Args:
        files: as given to Snakemake.
        default: what they are laid over, unless they stand alone; None for nothing.

    Raises:
        UserError: a file cannot be read, a key is given twice, or what is wrong with the
            configuration.
    """
    config: dict[str, Any] = {}
    for file in files:
        config = _merged(config, read_yaml(file) or {})
    if default and not stands_alone(config):
        files, config = [default, *files], _merged(read_yaml(default) or {}, config)
    return load_settings(config, " + ".join(map(str, files)))


def stands_alone(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has all sections that are needed, and so is not laid over another."""
    return all(section in config for section in config_schema()["required"])


def check_files(files: Sequence[Path]) -> None:
    """Check files that Snakemake has read itself: it takes the last of two equal keys.

    Raises:
        UserError: every key that is given twice in one file, one line each, with both lines.
    """
    faults = []
    for file in files:
        try:
            read_yaml(file)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))


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
    """A copy in JSON's types; YAML also has dates, .nan, and keys that are not text."""
    _raise(list(_other_keys(config, ())), where)
    _raise(list(_unusable(config, ())), where)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
    except TypeError as error:
        what = str(error).split()[3]
        raise UserError(f"{where}: a value is read as a {what}; put it in quotes") from None
    except ValueError:
        raise UserError(f"{where}: .nan and .inf are not allowed; write a finite number") from None
    return plain


def _unusable(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Texts that no file can be named by, and integers that no number type holds; never shown."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unusable(key, path)
            yield from _unusable(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unusable(item, (*path, str(number)))
    elif isinstance(value, str) and UNUSABLE.search(value):
        where = UNUSABLE.sub("?", ".".join(path)) or "the top level"
        yield f"{where}: a text has a NUL or half of a surrogate pair; remove it"
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        yield f"{'.'.join(path)}: the number has more than 64 bits; write a smaller one"


def _other_keys(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Keys that YAML does not read as text, such as `007` (7), `on` (True) and an empty one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                section = ".".join(path) or "the top level"
                yield f"{section}: a name is read as {key!r}; put it in quotes"
            yield from _other_keys(inner, (*path, str(key)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _other_keys(inner, (*path, str(number)))


def _formats() -> jsonschema.FormatChecker:
    checker = jsonschema.FormatChecker(formats=())

    @checker.checks("size", raises=UserError)
    def is_size(value: object) -> bool:
        if isinstance(value, str):
            parse_size(value)
        return True

    @checker.checks("size_or_share", raises=UserError)
    def is_size_or_share(value: object) -> bool:
        if isinstance(value, str):
            most_host_bytes(value)
        return True

    return checker


def _most_specific(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error


def _explain_error(error: jsonschema.ValidationError) -> str:
    path = ".".join(map(str, error.absolute_path)) or "the top level"
    if error.absolute_path and error.absolute_path[-1] in NEVER_SHOWN:
        return f"{path}: the value must be a text in quotes, or null"
    value: Any = error.instance
    rule: Any = error.validator_value
    schema: Any = error.schema
    match error.validator:
        case "maxItems":
            return f"{path}: it has {len(value)} entries; at most {rule} are allowed"
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
            return f"{path}: {value!r} is not {schema.get('x-expected', rule)}"
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
            return f"{path}: {value!r} must be of type {' or '.join(kinds)}{hint}"
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


def _check_policies(settings: Mapping[str, Any]) -> Iterator[str]:
    schemas = policy_schemas()
    for name, entry in settings["policies"].items():
        kind = entry["kind"]
        if kind in schemas:
            validator = SchemaValidator(schemas[kind])
            for error in validator.iter_errors(dict(entry)):
                error.path.extendleft((name, "policies"))
                yield _explain_error(error)
        elif not settings["policy_files"]:  # otherwise checked where those files are read
            yield f"policies.{name}: unknown kind {kind!r}{did_you_mean(kind, schemas)}"
    baselines = [name for name, one in settings["policies"].items() if one["kind"] == BASELINE]
    if len(baselines) > 1:
        yield (
            f"policies: {' and '.join(baselines)} are all of kind {BASELINE}; every run is paired "
            "with each of them, so that turns count more than once: keep one"
        )
    if not baselines:
        yield (
            f"policies: one of kind {BASELINE} is needed, all others are compared with it; add "
            f"`{BASELINE}: {{kind: {BASELINE}}}`"
        )


def _check_datasets(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in settings["datasets"].items():
        pool = entry["select"]["pool"]
        if entry["count"] > pool:
            yield (
                f"datasets.{name}.count: {entry['count']} is more than the {pool} dialogues of "
                f"datasets.{name}.select.pool; raise that too, or lower `count`"
            )


def _check_thresholds(settings: Mapping[str, Any]) -> Iterator[str]:
    if NO_THRESHOLD in settings["thresholds"]:
        yield f"thresholds.{NO_THRESHOLD}: this name means no eviction; choose another"
    for name, entry in settings["thresholds"].items():
        if "target" not in entry:
            continue
        if entry["trigger"] == "paper":
            yield (
                f"thresholds.{name}: trigger paper takes no target, its policies keep their own "
                "size; remove `target`"
            )
            continue
        at, target = parse_size(entry["at"]), parse_size(entry["target"])
        if at[1] == target[1] and target[0] >= at[0]:
            yield f"thresholds.{name}: target must be below `at`"


def _check_names(settings: Mapping[str, Any]) -> Iterator[str]:
    for section in ("models", "datasets", "policies", "thresholds"):
        names, known = settings["grid"][section], settings[section]
        for name in [] if names == "all" else names:
            if name not in known:
                yield f"grid.{section}: no {name!r}{did_you_mean(name, known)}"
    known = settings.get("judges", {})
    for number, name in enumerate(settings["judging"]):
        if name not in known:
            yield f"judging: no judge {name!r}{did_you_mean(name, known)}"
        if name in settings["judging"][:number]:
            yield f"judging: {name!r} is listed twice; its verdicts would count twice"


def _check_cases(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names are folders, and some disks take `A` and `a` for one folder."""
    for section in ("models", "datasets", "policies", "thresholds", "judges"):
        first: dict[str, str] = {}
        for name in settings.get(section, {}):
            other = first.setdefault(name.lower(), name)
            if other != name:
                yield f"{section}: {other!r} and {name!r} differ in case only; rename one"


def _check_dialogue_formats(settings: Mapping[str, Any]) -> Iterator[str]:
    try:
        known = list(known_formats(settings["format_files"]))
    except UserError as error:
        yield f"format_files: {error}"
        return
    for name, entry in settings["datasets"].items():
        if entry["format"] not in known:
            yield (
                f"datasets.{name}.format: {entry['format']!r} is not one of {', '.join(known)}"
                f"{nearest(entry['format'], known)}"
            )


def _check_judges(settings: Mapping[str, Any]) -> Iterator[str]:
    try:
        known = known_judges(settings["judge_files"])
    except UserError as error:
        yield f"judge_files: {error}"
        return
    for name, entry in settings.get("judges", {}).items():
        kind = entry["kind"]
        unknown: dict[str, Any] = {"properties": {"kind": {"enum": [*known]}}}
        schema = judge_schema(known[kind]) if kind in known else unknown
        wrong = list(SchemaValidator(schema).iter_errors(entry))
        for fault in wrong:
            fault.path.extendleft((name, "judges"))
            yield _explain_error(fault)
        if wrong:
            continue
        _fill_defaults(entry, schema, schema)
        yield from (f"judges.{name}.{fault}" for fault in option_faults(known[kind], entry))
        yield from (f"judges.{name}: {fault}" for fault in _faults_of_judge(settings, entry, known))


def _faults_of_judge(
    settings: Mapping[str, Any], entry: Mapping[str, Any], known: Mapping[str, type[Judge]]
) -> Iterator[str]:
    kind = entry["kind"]
    if entry["rubric"] == "pairwise" and not known[kind].compares:
        others = ", ".join(other for other in known if known[other].compares)
        yield (
            f"kind {kind} compares nothing; use another rubric, or a judge of a kind that compares "
            f"({others})"
        )
    if entry["rubric"] != "pairwise" and not known[kind].scores:
        yield f"kind {kind} gives no scores; use rubric pairwise"
    if entry.get("max_usd") is not None and entry.get("model") not in settings["prices"]:
        yield (
            "max_usd needs the model's price, dollars per million tokens: add `prices: "
            f"{{{entry.get('model')}: {{input: ..., output: ...}}}}`"
        )


def _check_grid(settings: Mapping[str, Any]) -> Iterator[str]:
    sections = {"model": "models", "dataset": "datasets", "policy": "policies"}
    sections |= {"threshold": "thresholds"}
    faults = []
    for field in ("include", "exclude"):
        for number, pattern in enumerate(settings["grid"][field]):
            for key, section in sections.items():
                known = [*settings[section], *([NO_THRESHOLD] if key == "threshold" else [])]
                if key in pattern and pattern[key] not in known:
                    path, name = f"grid.{field}.{number}.{key}", pattern[key]
                    faults.append(f"{path}: no {name!r}{did_you_mean(name, known)}")
            if field == "include" and pattern.get("threshold") == NO_THRESHOLD:
                faults.append(
                    f"grid.include.{number}.threshold: {NO_THRESHOLD!r} is added automatically"
                )
    if not faults and not cells(settings):
        faults.append("grid: nothing is left to run; check its lists and `exclude`")
    yield from faults
