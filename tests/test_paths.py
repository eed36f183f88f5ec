"""No path is a pattern: what reads files takes a name with brackets or stars as it is."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parents[1]
READERS = {
    name
    for name in dir(pl)
    if name.startswith(("read_", "scan_"))
    and "glob" in inspect.signature(getattr(pl, name)).parameters
}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for folder in ("src", "workflow", "notebooks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def test_polars_expands_no_pattern() -> None:
    """`pl.read_parquet("exp[1]/x.parquet")` reads `exp1/x.parquet`."""
    found = {}
    for where, call in calls():
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr in READERS and ast.unparse(call.func.value) in ("pl", "polars"):
            options = {word.arg: ast.unparse(word.value) for word in call.keywords}
            found[where] = options.get("glob")
    assert len(found) > 3
    assert set(found.values()) == {"False"}, found


def test_patterns_for_files_are_written_out() -> None:
    """A variable in a pattern may hold brackets; a folder before `.glob` is taken as it is."""
    wrong = [
        where
        for where, call in calls()
        if isinstance(call.func, ast.Attribute)
        and (
            (call.func.attr in ("glob", "rglob") and not _is_literal(call.args[0]))
            or ast.unparse(call.func) in ("glob.glob", "glob.iglob")
        )
    ]
    # The digest of a folder's path, in hex.
    assert [where.split(":")[0] for where in wrong] == ["src/kvfidelity/worker/socket_path.py"]


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)
