"""Imports point one way: a package uses those below it, never those above or next to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from kvfidelity.pipeline.syntax import imported_names

PACKAGE = Path(__file__).parents[1] / "src/kvfidelity"
#: From the bottom to the top. Names on one line are of one level and do not use each other.
ORDER = (
    "bounded_json, errors, suggestions",
    "atomic_files, cli, options, sizes, strict_yaml, user_files",
    "cache, wheels",
    "metrics",
    "records",
    "models, dialogues",
    "decoding",
    "generation",
    "prefix",
    "worker, judges, analysis, finetuning",
    "report",
    "pipeline, engine_check",
    "findings",
    "__main__",
)
#: Packages that may use others of their own level: tables are made of verdicts.
EXCEPTIONS = {("analysis", "judges")}


def levels() -> dict[str, int]:
    """Level of each package and loose module."""
    return {name: level for level, line in enumerate(ORDER) for name in line.split(", ")}


def imports() -> Iterator[tuple[str, str]]:
    """All imports inside the library: the importing module, the imported dotted name."""
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for imported in imported_names(ast.parse(file.read_bytes())):
            if imported.split(".")[0] == PACKAGE.name:
                yield module.removesuffix(".__init__"), imported


def wrong_way(importing: str, imported: str) -> bool:
    """Whether a package may not import another."""
    if importing == imported or (importing, imported) in EXCEPTIONS:
        return False
    return levels()[imported] >= levels()[importing]


def test_every_package_has_a_place() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__", "py"} <= set(levels())


def test_no_import_points_the_wrong_way() -> None:
    found = [
        f"{module} imports {imported}"
        for module, imported in imports()
        if module != PACKAGE.name and wrong_way(module.split(".")[1], imported.split(".")[1])
    ]
    assert found == []


def test_a_wrong_way_is_found() -> None:
    assert wrong_way("cache", "metrics")
    assert wrong_way("worker", "judges")
    assert wrong_way("report", "pipeline")
    assert wrong_way("generation", "prefix")
    assert wrong_way("wheels", "records")
    assert wrong_way("judges", "analysis")
    assert not wrong_way("analysis", "judges")
    assert not wrong_way("prefix", "generation")
    assert not wrong_way("pipeline", "cache")


def test_the_library_does_not_import_its_public_surface() -> None:
    """The public names of `kvfidelity` load what they stand for; digests of code do not follow."""
    names = set(levels())
    found = [f"{module}: {name}" for module, name in imports() if name.split(".")[1] not in names]
    assert found == []
