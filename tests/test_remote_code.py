"""No model's own code is run: every loader says so."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def loads() -> list[tuple[str, ast.Call]]:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]
    return [
        (f"{file.relative_to(ROOT)}:{node.lineno}", node)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
    ]


def test_every_loader_refuses_a_models_own_code() -> None:
    assert loads()
    for place, call in loads():
        given = {item.arg: ast.unparse(item.value) for item in call.keywords}
        assert given.get("trust_remote_code") == "False", place
