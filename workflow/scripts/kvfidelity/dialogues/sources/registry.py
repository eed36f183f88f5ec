"""Finds forms: every module of this package that defines `FORM`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

import kvfidelity.dialogues.sources as package
from kvfidelity.dialogues.sources.raw import Form
from kvfidelity.errors import UserError


def known_forms() -> dict[str, Form]:
    """All forms by name."""
    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        form = getattr(importlib.import_module(f"{package.__name__}.{entry.name}"), "FORM", None)
        if isinstance(form, Form):
            found[form.name] = form
    return dict(sorted(found.items()))


def form_named(name: str) -> Form:
    """One form.

    Raises:
        UserError: no such form; the nearest known one is named.
    """
    known = known_forms()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise UserError(f"dialogue format {name!r} is unknown; {hint}")
