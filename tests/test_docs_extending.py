"""The recipes of docs/extending.md, done as a reader does them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kvfidelity.cache.policies import build_policy

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def write_files(folder: Path, *names: str) -> None:
    """Write the code blocks that begin with a comment of these names."""
    for name in names:
        [code] = [code for code in blocks("python") if code.startswith(f"# {name}\n")]
        (folder / name).write_text(code, encoding="utf-8")


def run_test(folder: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_policy(tmp_path: Path) -> None:
    write_files(tmp_path, "my_policy.py", "test_my_policy.py")
    run_test(tmp_path, "test_my_policy.py")


def test_the_config_of_the_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "my_policy.py")
    monkeypatch.chdir(tmp_path)
    [entry] = [code for code in blocks("yaml") if "policy_files" in code]
    config = yaml.safe_load(entry)
    files = [Path(name) for name in config["policy_files"]]
    for parameters in config["policies"].values():
        kind = parameters.pop("kind")
        assert build_policy(kind, parameters, files).kind == kind
