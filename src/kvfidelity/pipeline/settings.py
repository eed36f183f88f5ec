"""The configuration: checked against its schema, defaults filled in, each error one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from kvfidelity.errors import UserError
from kvfidelity.pipeline.adapters import resolve_adapters
from kvfidelity.pipeline.schema_validator import SchemaValidator
from kvfidelity.pipeline.setting_checks import setting_faults
from kvfidelity.pipeline.setting_errors import MAX_PATH, explain_error, most_specific
from kvfidelity.pipeline.setting_schemas import config_schema, fill_defaults
from kvfidelity.sizes import most_host_bytes, parse_size, size_in_bytes
from kvfidelity.strict_yaml import read_yaml

UNUSABLE = re.compile("[\0\ud800-\udfff]")
LARGEST_INTEGER = 2**63 - 1
#: Characters of a text, such as a path, and entries of a list or section at most.
MAX_TEXT, MAX_ENTRIES = 4096, 10_000
#: Keys whose texts are paths, and bytes of a file's name at most.
PATHS = {"path", "member", "verdict_store", "format_files", "judge_files", "policy_files", "merge"}
MAX_FILE_NAME = 255


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
    _raise([explain_error(most_specific(error)) for error in errors], where)
    fill_defaults(settings, schema, schema)
    _raise(setting_faults(settings), where)
    resolve_adapters(settings)
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


def laid_over_default(config: Mapping[str, Any], default: Path) -> dict[str, Any]:
    """A configuration over the default, unless it stands alone.

    Raises:
        UserError: the default cannot be read.
    """
    return dict(config) if stands_alone(config) else _merged(read_yaml(default) or {}, config)


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
    """What no file can be named by, no number type holds, or nobody writes; never shown."""
    where = UNUSABLE.sub("?", ".".join(path))[:MAX_PATH] or "the top level"
    if isinstance(value, Mapping | list | str):
        is_text = isinstance(value, str)
        most, what = (MAX_TEXT, "characters") if is_text else (MAX_ENTRIES, "entries")
        if len(value) > most:
            yield f"{where}: it has {len(value)} {what}; at most {most} are allowed"
            return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unusable(key, path)
            yield from _unusable(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unusable(item, (*path, str(number)))
    elif isinstance(value, str) and UNUSABLE.search(value):
        yield f"{where}: a text has a NUL or half of a surrogate pair; remove it"
    elif isinstance(value, str) and not PATHS.isdisjoint(path):
        if any(len(part.encode()) > MAX_FILE_NAME for part in value.split("/")):
            yield f"{where}: a name in this path has more than {MAX_FILE_NAME} bytes; shorten it"
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        yield f"{where}: the number has more than 64 bits; write a smaller one"


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

    @checker.checks("size_in_bytes", raises=UserError)
    def is_size_in_bytes(value: object) -> bool:
        if isinstance(value, str):
            size_in_bytes(value)
        return True

    @checker.checks("size_or_share", raises=UserError)
    def is_size_or_share(value: object) -> bool:
        if isinstance(value, str):
            most_host_bytes(value)
        return True

    return checker
