"""Finds policies: in every module of this package, and in files that a config names."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import kvfidelity.cache.policies as package
from kvfidelity.cache.healing.registry import KEY, known_healings
from kvfidelity.cache.policies.base import WRAPPED_SCHEMA, Policy
from kvfidelity.errors import UserError
from kvfidelity.options import option_fields, option_schemas
from kvfidelity.suggestions import did_you_mean
from kvfidelity.user_files import load_module


def known_policies(files: Iterable[Path] = ()) -> dict[str, type[Policy]]:
    """All policies by kind: those of this package, then those that `files` define.

    Raises:
        UserError: a file is missing, fails to import, defines no policy, or defines a known kind.
    """
    found = dict(_own_policies())
    for file in files:
        own = _policies_in(load_module(file, "policy_files"))
        if not own:
            raise UserError(f"{file} defines no policy: it needs a dataclass of Policy with `kind`")
        for policy in own:
            if policy.kind in found:
                raise UserError(f"{file}: policy kind {policy.kind!r} exists already; rename it")
            found[policy.kind] = policy
    return dict(sorted(found.items()))


@functools.cache
def _own_policies() -> Mapping[str, type[Policy]]:
    """Those of this package; looked for once, for each run asks."""
    found: dict[str, type[Policy]] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        found |= {policy.kind: policy for policy in _policies_in(module)}
    return found


def build_policy(kind: str, parameters: Mapping[str, Any], files: Iterable[Path] = ()) -> Policy:
    """A policy from its config entry.

    Raises:
        UserError: unknown kind or parameter (the nearest known one is named), or a bad value.
    """
    files = list(files)
    known = known_policies(files)
    if kind not in known:
        raise UserError(f"unknown policy kind {kind!r}{did_you_mean(kind, known)}")
    names = {item.name for item in dataclasses.fields(known[kind])}
    for name in parameters:
        if name not in names:
            raise UserError(f"policy {kind}: unknown parameter {name!r}{did_you_mean(name, names)}")
    inside = {
        item.name: _wrapped(kind, item.name, parameters.get(item.name, item.default), files)
        for item in option_fields(known[kind])
        if item.metadata["schema"] is WRAPPED_SCHEMA
        and not (item.name not in parameters and item.default is dataclasses.MISSING)
    }
    try:
        return known[kind](**{**parameters, **inside})
    except TypeError as error:
        raise UserError(f"policy {kind}: {error}") from None


def _wrapped(kind: str, name: str, entry: Any, files: list[Path]) -> Policy:
    """The policy that `entry`, a parameter of policy `kind`, names."""
    if isinstance(entry, Policy):
        return entry
    if isinstance(entry, str):
        entry = {"kind": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("kind"), str):
        raise UserError(f"policy {kind}: {name} is {entry!r}; it must be a kind, or have a `kind`")
    inner = {key: value for key, value in entry.items() if key != "kind"}
    try:
        return build_policy(entry["kind"], inner, files)
    except UserError as error:
        raise UserError(f"policy {kind}, {name}: {error}") from None


def policy_schema(files: Iterable[Path] = ()) -> dict[str, Any]:
    """JSON schema of each kind's parameters, with the docstring's start and module, by kind."""
    return {kind: _schema_of(policy) for kind, policy in known_policies(files).items()}


def _schema_of(policy: type[Policy]) -> dict[str, Any]:
    properties, required = option_schemas(policy)
    # Without a default: a policy that names no healing has none among its parameters.
    about = "what is done about the gap that an eviction leaves; see docs/healing.md"
    healing = {KEY: {"type": "string", "enum": [*known_healings()], "description": about}}
    if not policy.evicts:
        healing = {}
    return {
        "description": " ".join((inspect.getdoc(policy) or "").split("\n\n")[0].split()),
        "module": policy.__module__,
        "type": "object",
        "properties": {"kind": {"const": policy.kind}, **properties, **healing},
        "required": ["kind", *required],
        "additionalProperties": False,
    }


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


if __name__ == "__main__":
    json.dump(policy_schema(), sys.stdout, indent=2)
    print()
