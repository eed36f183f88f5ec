"""Finds forms: every module of this package that defines `FORM`."""

from __future__ import annotations

import importlib
import pkgutil

import kvfidelity.dialogues.formats as package
from kvfidelity.dialogues.formats.raw import Format
from kvfidelity.errors import UserError
from kvfidelity.suggestions import did_you_mean


def known_formats() -> dict[str, Format]:
    """All forms by name."""
    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        format_ = getattr(
            importlib.import_module(f"{package.__name__}.{entry.name}"), "FORMAT", None
        )
        if isinstance(format_, Format):
            found[format_.name] = format_
    return dict(sorted(found.items()))


def get_format(name: str) -> Format:
    """One form.

    Raises:
        UserError: no such form; the nearest known one is named.
    """
    known = known_formats()
    if name in known:
        return known[name]
    raise UserError(f"dialogue format {name!r} is unknown{did_you_mean(name, known)}")
