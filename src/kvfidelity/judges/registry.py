"""Finds judge kinds: every module of `judges.kinds`, and files that a config names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import kvfidelity.judges.kinds as package
from kvfidelity.errors import UserError
from kvfidelity.judges.base import Judge
from kvfidelity.judges.requests import Limits
from kvfidelity.options import option_fields, option_schemas
from kvfidelity.suggestions import did_you_mean
from kvfidelity.user_files import load_module


def known_judges(files: Iterable[str] = ()) -> dict[str, type[Judge]]:
    """All judge kinds by name: the built-in ones, then those that `files` define.

    Raises:
        UserError: a file that is missing, fails to import, defines no judge, or takes a kind that
            exists already.
    """
    found = dict(_built_in_judges())
    for file in files:
        own = _judges_in(load_module(file, "judge_files"))
        if not own:
            raise UserError(f"{file} defines no judge: it needs a dataclass of Judge with `kind`")
        for judge in own:
            if judge.kind in found:
                raise UserError(f"{file}: judge kind {judge.kind!r} exists already; rename it")
            found[judge.kind] = judge
    return dict(sorted(found.items()))


def judge_class(kind: str, files: Iterable[str] = ()) -> type[Judge]:
    """The class of one kind.

    Raises:
        UserError: unknown kind; the nearest known one is named.
    """
    known = known_judges(files)
    if kind not in known:
        raise UserError(f"unknown judge kind {kind!r}{did_you_mean(kind, known)}")
    return known[kind]


def is_built_in(kind: str) -> bool:
    """Whether a kind is defined by this package."""
    return kind in _built_in_judges()


def judge_schema(judge: type[Judge]) -> dict[str, Any]:
    """JSON schema of the config entries of a kind."""
    properties: dict[str, Any] = {
        "kind": {"const": judge.kind},
        "rubric": {"type": "string"},
    }
    required = ["kind", "rubric"]
    for source in _option_sources(judge):
        options, needed = option_schemas(source)
        properties |= options
        required += needed
    return {
        "description": " ".join((inspect.getdoc(judge) or "").split("\n\n")[0].split()),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "allOf": [dict(rule) for rule in judge.rules],
    }


def options_outside_verdicts(judge: type[Judge]) -> set[str]:
    """Options that change how a judge is asked, but no verdict."""
    return {
        item.name
        for source in _option_sources(judge)
        for item in option_fields(source)
        if not item.metadata["changes_verdict"]
    }


def build_judge(
    name: str,
    entry: Mapping[str, Any],
    rubric: Path,
    limits: Mapping[str, Any],
    store: Path,
    *,
    batch: bool = False,
    from_batch: bool = False,
) -> Judge:
    """A judge.

    Args:
        name: of the judge in the config.
        entry: its config entry; `judge_files` names the file of a user-defined kind.
        limits: see `requests.Limits`.
        store: the folder of answers.
        batch: ask through the Batch API.
        from_batch: a batch asked for everything before; what the store lacks is an error.
    """
    judge = judge_class(entry["kind"], entry.get("judge_files", ()))
    client = None
    if judge.needs_network:
        # Imported here: a run without a key needs no client of an endpoint.
        from kvfidelity.judges.dispatch import build_client

        client = build_client(name, entry, limits, store, batch=batch, from_batch=from_batch)
    options = {item.name: entry[item.name] for item in option_fields(judge) if item.name in entry}
    try:
        return judge(name, rubric, client, **options)
    except TypeError as error:
        raise UserError(f"judge {name}: {error}") from None


def _option_sources(judge: type[Judge]) -> list[type]:
    return [judge, Limits] if judge.needs_network else [judge]


@cache
def _built_in_judges() -> dict[str, type[Judge]]:
    modules = [
        importlib.import_module(f"{package.__name__}.{entry.name}")
        for entry in pkgutil.iter_modules(package.__path__)
    ]
    return {judge.kind: judge for module in modules for judge in _judges_in(module)}


def _judges_in(module: ModuleType) -> list[type[Judge]]:
    return [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, Judge)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
