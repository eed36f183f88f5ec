"""What each module imports, and a digest of its code; kept from one process to the next.

Every job reads the Snakefile again, and parsing all modules takes a second. So what was found is
kept in `.snakemake`, for as long as a file's size and time of change stay the same.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from kvfidelity.pipeline.syntax import canonical, imported_names, string_constants

STORE = Path(".snakemake/kvfidelity-code.json")


class ModuleDigests:
    """Digests of the modules of one package and of scripts.

    Args:
        package: the package's folder. scripts: a folder; a script's name ends in `.py`.
    """

    def __init__(self, package: Path, scripts: Path) -> None:
        self._scripts = scripts
        self._files = dict(_modules_below(package))
        # What is kept was found by this code. The path is relative, as STORE is: a project that is
        # moved, or copied with its files' times, keeps what was found.
        own = [_stamp(Path(__file__)), _stamp(Path(canonical.__code__.co_filename))]
        self._header: Any = [os.path.relpath(package), *own]
        self._known = self._load()
        self._used: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, str] = {}
        self._changed = False

    def imports(self, name: str) -> list[str]:
        """Modules of the package that a module imports, with the packages that they are in."""
        found = set()
        for imported in self._about(name)["imports"]:
            # `from a import b` may name a module or something inside one.
            known = imported if imported in self._files else imported.rpartition(".")[0]
            while known in self._files:
                found.add(known)
                known = known.rpartition(".")[0]
        return sorted(found)

    def searched_packages(self, name: str) -> list[str]:
        """Packages whose modules a module looks for when it runs: those that it imports whole."""
        imported = self._about(name)["imports"]
        packages = [p for p in imported if p in self._files and self._is_package(p)]
        return packages if "pkgutil" in imported else []

    def modules_in(self, package: str) -> list[str]:
        """A package's modules, without those of packages inside it."""
        return sorted(name for name in self._files if name.rpartition(".")[0] == package)

    def digest(self, name: str) -> str:
        """SHA-256 over a module's code and over the files that it names, in hex."""
        if name in self._digests:
            return self._digests[name]
        about = self._about(name)
        parts = [about["code"]]
        for file in self._data_files(name, about["strings"]):
            parts += [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
        self._digests[name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._digests[name]

    def save(self) -> None:
        """Keep what was found, if the folder is there and can be written to."""
        if not self._changed:
            return
        content = {"header": self._header, "modules": self._known | self._used}
        temporary = STORE.with_name(f"{STORE.name}.tmp-{os.getpid()}")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(content))
            temporary.replace(STORE)
        self._changed = False

    def _about(self, name: str) -> dict[str, Any]:
        """Imports, strings and digest of a module, and the stamp of the file that they are of."""
        if name in self._used:
            return self._used[name]
        file = self._file(name)
        stamp, known = _stamp(file), self._known.get(name)
        if known is None or known["stamp"] != stamp:
            tree = ast.parse(file.read_bytes(), str(file))
            known = {
                "stamp": stamp,
                "imports": sorted(imported_names(tree)),
                "strings": sorted(string_constants(tree)),
                "code": hashlib.sha256(canonical(tree).encode()).hexdigest(),
            }
            self._changed = True
        self._used[name] = known
        return known

    def _file(self, name: str) -> Path:
        return self._scripts / name if name.endswith(".py") else self._files[name]

    def _is_package(self, name: str) -> bool:
        return self._files[name].name == "__init__.py"

    def _data_files(self, name: str, strings: list[str]) -> list[Path]:
        """Files that are not Python, next to a module or in a folder there, that it names."""
        if name.endswith(".py"):
            return []
        folder = self._files[name].parent
        named = [folder / text for text in strings]
        found = [file for file in named if file.is_file() and file.suffix != ".py"]
        for inner in named:
            if inner.is_dir() and not (inner / "__init__.py").exists():
                found += [file for file in inner.rglob("*") if file.is_file()]
        return sorted(found)

    def _load(self) -> dict[str, Any]:
        try:
            content = json.loads(STORE.read_text())
            known: dict[str, Any] = content["modules"] if content["header"] == self._header else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}
        return known


def _modules_below(package: Path) -> list[tuple[str, Path]]:
    found = []
    for folder, inner, names in os.walk(package):
        inner[:] = [name for name in inner if name != "__pycache__"]
        parts = [package.name, *Path(folder).relative_to(package).parts]
        for name in names:
            if name.endswith(".py"):
                module = [] if name == "__init__.py" else [name.removesuffix(".py")]
                found.append((".".join([*parts, *module]), Path(folder) / name))
    return found


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
