"""Each launch of a Triton kernel gives the arguments that the kernel has: seen without a GPU."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "src/kvfidelity/cache/triton"
MODULES = sorted(FOLDER.glob("*.py"))
#: Options of a launch that are not the kernel's.
OPTIONS = {"num_warps", "num_stages", "num_ctas", "maxnreg"}


def kernels() -> dict[str, list[str]]:
    """Parameters of every jitted function, by name."""
    found = {}
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                found[node.name] = [argument.arg for argument in node.args.args]
    return found


def launches() -> Iterator[tuple[str, ast.Call]]:
    """Calls of the form `kernel[grid](...)`."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                name = node.func.value
                if isinstance(name, ast.Name) and name.id in kernels():
                    yield name.id, node


LAUNCHES = list(launches())


@pytest.mark.parametrize(("name", "call"), LAUNCHES, ids=[name for name, _ in LAUNCHES])
def test_a_launch_gives_every_argument_of_its_kernel_once(name: str, call: ast.Call) -> None:
    parameters = kernels()[name]
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        parameters = parameters[-len(call.keywords) :]
        given: list[str] = []
    else:
        given = parameters[: len(call.args)]
    named = [keyword.arg for keyword in call.keywords if keyword.arg not in OPTIONS]
    if None not in named:  # no `**more`
        assert sorted([*given, *map(str, named)]) == sorted(parameters)


def test_there_are_launches_to_look_at() -> None:
    assert len(LAUNCHES) >= 4
