"""Python files that a configuration names: user-defined judges and dialogue formats."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from kvfidelity.errors import UserError


def load_module(file: str | Path, key: str) -> ModuleType:
    """Import a file as a module, once in a process.

    Args:
        file: relative to the working directory. key: the config key that names it.

    Raises:
        UserError: a missing file, another ending than .py, or an error in the file.
    """
    return _load(Path(file).resolve(), str(file), key)


def files_digest(files: Iterable[str | Path]) -> str:
    """SHA-256 over the content of the files that exist, 12 hex digits."""
    content = b"".join(Path(file).read_bytes() for file in files if Path(file).is_file())
    return hashlib.sha256(content).hexdigest()[:12]


@cache
def _load(file: Path, shown: str, key: str) -> ModuleType:
    if not file.is_file():
        raise UserError(f"{shown} does not exist; correct `{key}` in the config")
    name = f"kvfidelity_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{shown} is not a Python file; a file of `{key}` must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{shown} fails: {type(error).__name__}: {error}") from error
    return module
