"""Finds dialogue formats: every module of this package, and files that a config names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType

import kvfidelity.dialogues.formats as package
from kvfidelity.dialogues.formats.raw import Format
from kvfidelity.errors import UserError
from kvfidelity.suggestions import did_you_mean
from kvfidelity.user_files import load_module


def known_formats(files: Iterable[str] = ()) -> dict[str, Format]:
    """All formats by name: the built-in ones, then those that `files` define.

    Raises:
        UserError: a file that is missing, fails to import, defines no `FORMAT`, or takes a name
            that exists already.
    """
    found = dict(_built_in_formats())
    for file in files:
        own = _format_in(load_module(file, "format_files"))
        if own is None:
            raise UserError(f"{file} defines no dialogue format: it needs `FORMAT = Format(...)`")
        if own.name in found:
            raise UserError(f"{file}: dialogue format {own.name!r} exists already; rename it")
        found[own.name] = own
    return dict(sorted(found.items()))


def get_format(name: str, files: Iterable[str] = ()) -> Format:
    """The format of one name.

    Raises:
        UserError: no such format; the nearest known one is named.
    """
    known = known_formats(files)
    if name not in known:
        raise UserError(f"dialogue format {name!r} is unknown{did_you_mean(name, known)}")
    return known[name]


def is_built_in(name: str) -> bool:
    """Whether a format is defined by this package."""
    return name in _built_in_formats()


@cache
def _built_in_formats() -> dict[str, Format]:
    modules = [
        importlib.import_module(f"{package.__name__}.{entry.name}")
        for entry in pkgutil.iter_modules(package.__path__)
    ]
    return {own.name: own for module in modules if (own := _format_in(module)) is not None}


def _format_in(module: ModuleType) -> Format | None:
    found = getattr(module, "FORMAT", None)
    return found if isinstance(found, Format) else None
