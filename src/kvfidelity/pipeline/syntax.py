"""A module's syntax tree as text: the same under every Python, whatever its comments say."""

from __future__ import annotations

import ast
from collections.abc import Iterator

#: Fields that say how something was written, or of which type it is, not what it does.
IGNORED = frozenset({"annotation", "returns", "type_comment", "type_ignores", "kind", "simple"})
#: Longer strings name no file.
LONGEST_NAME = 80


def canonical(node: object) -> str:
    """The tree as text without comments, docstrings, annotations and imports for type checkers.

    `ast.dump` would differ between versions of Python, which add fields to nodes; here a field
    that is empty is not named.
    """
    return "".join(_text(node))


def _text(node: object) -> Iterator[str]:
    if isinstance(node, ast.AST):
        yield type(node).__name__
        yield "("
        for name in node._fields:
            value = getattr(node, name, None)
            if name in IGNORED or (value is None and not isinstance(node, ast.Constant)):
                continue
            if isinstance(value, list):
                value = _meaningful(node, value)
                if not value:
                    continue
            yield f"{name}="
            yield from _text(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _text(item)
            yield ","
    else:
        yield f"{type(node).__name__}:{node!r}"


def _meaningful(parent: ast.AST, nodes: list[ast.AST]) -> list[ast.AST]:
    """Statements that do something; the parts of an f-string with neighbouring texts joined."""
    if isinstance(parent, ast.JoinedStr):
        return _joined(nodes)
    return [node for node in nodes if not _is_text(node) and not for_type_checkers(node)]


def _is_text(statement: ast.AST) -> bool:
    """A docstring, wherever it stands: a statement that is a string does nothing."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def for_type_checkers(node: object) -> bool:
    """Whether a statement is `if TYPE_CHECKING:` without `else`."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        and not node.orelse
    )


def _joined(parts: list[ast.AST]) -> list[ast.AST]:
    joined: list[ast.AST] = []
    text = ""
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            text += part.value
            continue
        joined += [ast.Constant(text)] if text else []
        joined.append(part)
        text = ""
    return joined + ([ast.Constant(text)] if text else [])


def imported_names(tree: ast.Module) -> set[str]:
    """Dotted names of all that is imported anywhere in a module, but for type checkers only.

    `from a import b` gives `a.b`: whether that is a module is for the caller to find out.
    """
    found: set[str] = set()
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def string_constants(tree: ast.Module) -> set[str]:
    """Short strings that may be the name of a file or folder."""
    return {
        node.value
        for node in _nodes(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and 0 < len(node.value) <= LONGEST_NAME
        and node.value.replace("_", "").replace(".", "").replace("-", "").isalnum()
    }


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, without what is there for type checkers only."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [n for n in ast.iter_child_nodes(node) if not for_type_checkers(n)]
