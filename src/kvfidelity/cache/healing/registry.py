"""Finds healings, and builds them from their name in a config."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import kvfidelity.cache.healing as package
from kvfidelity.cache.healing.base import Healing
from kvfidelity.errors import UserError
from kvfidelity.suggestions import did_you_mean

#: The key of a policy's entry that names a healing.
KEY = "healing"
NONE = "none"


def known_healings() -> dict[str, type[Healing]]:
    """All healings of this package by kind; `none` is first."""
    found: dict[str, type[Healing]] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for member in vars(module).values():
            if (
                inspect.isclass(member)
                and issubclass(member, Healing)
                and member.__module__ == module.__name__
                and "kind" in vars(member)
            ):
                found[member.kind] = member
    return {NONE: found.pop(NONE), **dict(sorted(found.items()))}


def build_healing(kind: str, parameters: Mapping[str, Any] | None = None) -> Healing:
    """A healing by its kind; a config names the kind alone, so its parameters are the defaults.

    Raises:
        UserError: an unknown kind or parameter (the nearest known one is named).
    """
    known = known_healings()
    if kind not in known:
        raise UserError(f"unknown healing {kind!r}{did_you_mean(kind, known)}")
    names = [item.name for item in fields(known[kind])]
    for name in parameters or {}:
        if name not in names:
            nearest = did_you_mean(name, names)
            raise UserError(f"healing {kind}: unknown parameter {name!r}{nearest}")
    return known[kind](**(parameters or {}))


def without_healing(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A policy's own parameters, and the healing that its entry names."""
    own = {name: value for name, value in parameters.items() if name != KEY}
    return own, parameters.get(KEY, NONE)
