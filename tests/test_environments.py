"""The environment files hold what their rules' code imports, in the lock's versions."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow/scripts"
#: The module that counts lengths for these also draws them for rule `lengths`.
UNUSED = {(f"extract_{what}.py", "altair") for what in ("dialogues", "training_dialogues")}
# Comes with PyTorch's CUDA builds; what imports it is itself imported on a GPU only.
OF_TORCH = {"triton"}
RULE = re.compile(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", re.M | re.S)


def pinned(lines: list[str]) -> dict[str, str]:
    found = [line.removesuffix("\\") for line in lines if "==" in line and line[0] not in " #"]
    asked = [Requirement(line) for line in found]
    return {canonicalize_name(item.name): str(item.specifier)[2:] for item in asked}


def lock() -> dict[str, str]:
    """Versions of the lock, and of torch, which is exempt from its hashes."""
    files = (ROOT / "requirements.lock", ROOT / "envs/torch.txt")
    return pinned([line for file in files for line in file.read_text().splitlines()])


def environments() -> dict[str, set[str]]:
    """Scripts by environment file, as the rules have them."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for _, body in RULE.findall(file.read_text()):
            environment = re.search(r"envs/(\w+\.yaml)", body)
            script = re.search(r'"\$SCRIPTS/(\w+\.py)"', body)
            assert environment and script
            found.setdefault(environment[1], set()).add(script[1])
    return found


def pins(environment: str) -> dict[str, str]:
    content = yaml.safe_load((ROOT / "envs" / environment).read_text())
    return pinned(next(part["pip"] for part in content["dependencies"] if isinstance(part, dict)))


def modules(script: str) -> set[str]:
    """Third-party modules that a script imports, itself or through the library."""
    waiting, seen, outside = [SCRIPTS / script], set[Path](), set[str]()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imported(file):
            top = name.split(".")[0]
            if top != "kvfidelity":
                outside.add(top)
                continue
            path = ROOT / "src" / name.replace(".", "/")
            waiting += [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
    return outside - sys.stdlib_module_names


@cache
def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def installed_with(package: str, seen: set[str] | None = None) -> set[str]:
    """A package and what installing it installs."""
    seen = set() if seen is None else seen
    name = canonicalize_name(package)
    if name in seen:
        return seen
    seen.add(name)
    for line in requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            installed_with(requirement.name, seen)
    return seen


@pytest.mark.parametrize("environment", sorted(environments()))
def test_an_environment_has_what_its_rules_import(environment: str) -> None:
    available = set[str]().union(*(installed_with(package) for package in pins(environment)))
    owners = packages_distributions()
    for script in sorted(environments()[environment]):
        for module in sorted(modules(script)):
            if (script, module) in UNUSED or module in OF_TORCH:
                continue
            packages = {canonicalize_name(name) for name in owners[module]}
            assert packages & available, f"{script} imports {module}; envs/{environment} lacks it"


@pytest.mark.parametrize("environment", sorted(environments()))
def test_an_environments_versions_are_the_locks(environment: str) -> None:
    assert pins(environment).items() <= lock().items()


@pytest.mark.parametrize("environment", sorted(environments()))
def test_an_environment_names_each_package_once(environment: str) -> None:
    content = yaml.safe_load((ROOT / "envs" / environment).read_text())
    [listed] = [part["pip"] for part in content["dependencies"] if isinstance(part, dict)]
    names = [canonicalize_name(Requirement(line).name) for line in listed]
    assert sorted(set(names)) == sorted(names)


def test_the_workflows_packages_are_not_the_bases() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {Requirement(line).name for line in project["dependencies"]}
    assert base == {"torch", "transformers", "safetensors", "numpy"}


def test_the_lock_has_what_the_package_asks_for() -> None:
    locked = lock()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requested = project["dependencies"] + extras["workflow"] + extras["dev"]
    for requirement in map(Requirement, requested):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("file", ["requirements.lock", "envs/build.lock"])
def test_every_locked_package_has_hashes(file: str) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / file).read_text())
    named = [entry for entry in entries if "==" in entry.splitlines()[0]]
    assert named
    for entry in named:
        assert re.search("--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_one_lock_serves_both_pythons(python: str) -> None:
    """Each package once, whatever the version of Python asks for."""
    found = []
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if "==" in line and line[0] not in " #":
            item = Requirement(line.removesuffix("\\"))
            about = {"python_version": python, "python_full_version": f"{python}.0"}
            if item.marker is None or item.marker.evaluate(about):
                found.append(canonicalize_name(item.name))
    assert len(found) == len(set(found)) > 100
    assert "torch" not in found


def test_packages_are_installed_by_their_hashes_alone() -> None:
    for file in ("envs/install.sh", "envs/Dockerfile", "envs/apptainer.def"):
        text = (ROOT / file).read_text()
        assert "--require-hashes" in text and "build.lock" in text and "torch.txt" in text
