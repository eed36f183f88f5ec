"""Finds policies: in every module of this package, and in files that a config names."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import kvfidelity.cache.policies as package
from kvfidelity.cache.policies.base import Policy
from kvfidelity.errors import UserError
from kvfidelity.suggestions import did_you_mean


def known_policies(files: Iterable[Path] = ()) -> dict[str, type[Policy]]:
    """All policies by kind: those of this package, then those that `files` define.

    Raises:
        UserError: a file is missing, fails to import, defines no policy, or defines a known kind.
    """
    found: dict[str, type[Policy]] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        found |= {policy.kind: policy for policy in _policies_in(module)}
    for file in files:
        own = _policies_in(_load(Path(file)))
        if not own:
            raise UserError(f"{file} defines no policy: it needs a dataclass of Policy with `kind`")
        for policy in own:
            if policy.kind in found:
                raise UserError(f"{file}: policy kind {policy.kind!r} exists already; rename it")
            found[policy.kind] = policy
    return dict(sorted(found.items()))


def build_policy(kind: str, parameters: Mapping[str, Any], files: Iterable[Path] = ()) -> Policy:
    """A policy from its config entry.

    Raises:
        UserError: unknown kind or parameter (the nearest known one is named), or a bad value.
    """
    known = known_policies(files)
    if kind not in known:
        raise UserError(f"unknown policy kind {kind!r}{did_you_mean(kind, known)}")
    names = {item.name for item in dataclasses.fields(known[kind])}
    for name in parameters:
        if name not in names:
            raise UserError(f"policy {kind}: unknown parameter {name!r}{did_you_mean(name, names)}")
    try:
        return known[kind](**parameters)
    except TypeError as error:
        raise UserError(f"policy {kind}: {error}") from None


def policy_schema(files: Iterable[Path] = ()) -> dict[str, Any]:
    """JSON schema of each kind's parameters, with the docstring's start and module, by kind."""
    return {kind: _schema_of(policy) for kind, policy in known_policies(files).items()}


def _schema_of(policy: type[Policy]) -> dict[str, Any]:
    hints = typing.get_type_hints(policy)
    properties: dict[str, Any] = {"kind": {"const": policy.kind}}
    required = ["kind"]
    for item in dataclasses.fields(policy):
        meta = item.metadata
        entry = _json_type(hints[item.name]) | {"description": meta["doc"]}
        for bound, keyword in (
            ("low", "minimum"),
            ("high", "maximum"),
            ("above", "exclusiveMinimum"),
        ):
            if meta[bound] is not None:
                entry[keyword] = meta[bound]
        if meta["odd"]:
            entry["not"] = {"multipleOf": 2}
        if meta["choices"]:
            entry["enum"] = list(meta["choices"])
        if item.default is dataclasses.MISSING:
            required.append(item.name)
        else:
            entry["default"] = item.default
        properties[item.name] = entry
    return {
        "description": " ".join((inspect.getdoc(policy) or "").split("\n\n")[0].split()),
        "module": policy.__module__,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _json_type(hint: Any) -> dict[str, Any]:
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    if isinstance(hint, types.UnionType):
        return {"type": [names[member] for member in typing.get_args(hint)]}
    return {"type": names[hint]}


def _policies_in(module: types.ModuleType) -> list[type[Policy]]:
    return [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, Policy)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
        and not member.__name__.startswith("_")
    ]


def _load(file: Path) -> types.ModuleType:
    if not file.is_file():
        raise UserError(f"policy file {file} does not exist; correct `policy_files` in the config")
    name = f"kvfidelity_policy_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"policy file {file} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"policy file {file} fails: {type(error).__name__}: {error}") from error
    return module


if __name__ == "__main__":
    json.dump(policy_schema(), sys.stdout, indent=2)
    print()
