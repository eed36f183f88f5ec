"""The built wheel works outside the checkout, and its base without the workflow's packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.models.tiny import save_tiny
from tests.test_environments import installed_with
from tests.test_readme import block

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: What a program begins with in which the workflow's packages are not installed.
HIDE = """
import sys
from importlib.machinery import PathFinder

class OnlyBase(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden}
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyBase()
"""
IMPORT_BASE = """
import importlib, importlib.util, pkgutil
from kvfidelity import cache
names = [found.name for found in pkgutil.walk_packages(cache.__path__, "kvfidelity.cache.")]
if not importlib.util.find_spec("triton"):  # comes with PyTorch's CUDA builds
    names = [name for name in names if not name.startswith("kvfidelity.cache.triton")]
names += ["kvfidelity.metrics.positions", "kvfidelity.metrics.likelihood"]
for name in names:
    importlib.import_module(name)
assert len(names) > 20
from kvfidelity.cache.policies.registry import known_policies
assert len(known_policies()) > 10
"""
SNIPPET = """
import torch
ids = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
"""
RESULT = """
assert out.shape == (1, 100) and cache.size <= 64 and evictor.log
import kvfidelity
print(kvfidelity.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building writes next to the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "source/src", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-index", "--target", str(folder), str(wheel))
    return folder


def pip(command: str, *arguments: str) -> None:
    quiet = ("--quiet", "--no-deps", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *quiet, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run(installed: Path, folder: Path, code: str) -> str:
    """Run a program elsewhere, with the installed wheel and not the checkout."""
    (folder / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def only_base() -> str:
    """The lines that hide what only the workflow's packages install."""
    base = set[str]().union(*map(installed_with, names(PROJECT["dependencies"])))
    extra = names(PROJECT["optional-dependencies"]["workflow"])
    hidden = set[str]().union(*map(installed_with, extra)) - base
    modules = {
        module
        for module, packages in packages_distributions().items()
        if {canonicalize_name(package) for package in packages} <= hidden
    }
    assert {"polars", "snakemake", "openai", "altair", "datasets", "pyarrow"} <= modules
    return HIDE.replace("{hidden}", repr(sorted(modules)))


def names(requirements: list[str]) -> list[str]:
    return [Requirement(line).name for line in requirements]


def snippet(model: Path) -> str:
    code = block("model.generate").replace("resources/models/smollm2-135m", str(model))
    code = code.replace("max_new_tokens=1000", "max_new_tokens=60, min_new_tokens=60")
    return re.sub(r"\b256\b", "32", re.sub(r"\b512\b", "64", code))


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src/kvfidelity").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())


def test_readmes_snippets_run_from_a_wheel_with_the_base_packages_only(
    installed: Path, tmp_path: Path
) -> None:
    code = snippet(save_tiny(tmp_path / "model"))
    (tmp_path / "my_policy.py").write_text(block("class EveryOther"))
    own = code.replace('"streaming_llm", {"sinks": 4}', '"every_other", {}, ["my_policy.py"]')
    assert own != code
    out = run(installed, tmp_path, only_base() + SNIPPET + code + RESULT + own + RESULT)
    assert out.split() == 2 * [str(installed / "kvfidelity/__init__.py")]


def test_the_base_imports_without_the_workflows_packages(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, only_base() + IMPORT_BASE)


def test_the_installed_library_finds_its_schemas_and_templates(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    code = """
import kvfidelity.analysis.claims_file as claims
import kvfidelity.report.page as page
from pathlib import Path
from kvfidelity.pipeline.config_docs import config_docs
from kvfidelity.pipeline.settings import read_settings
assert read_settings([Path("config.yaml")])["title"]
assert "streaming_llm" in config_docs()
assert claims.SCHEMA_FILE.is_file()
assert (Path(page.__file__).parent / "templates/page.css").is_file()
"""
    run(installed, tmp_path, code)
