"""`import kvfidelity` is cheap, and every public name is there."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import kvfidelity


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'polars'}"
    for line in ("import kvfidelity", "from kvfidelity.cache.positions import PositionMode"):
        code = f"{line}; import sys; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", line


@pytest.mark.parametrize("name", kvfidelity.__all__)
def test_every_public_name_resolves(name: str) -> None:
    found: Any = getattr(kvfidelity, name)
    assert found.__name__ == name
    assert name in dir(kvfidelity)


def test_the_names_of_the_readme_are_public() -> None:
    promised = "new_cache build_policy Policy parameter Evictor EvictionSchedule PositionMode"
    assert set(promised.split()) <= set(kvfidelity.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kvfidelity.nothing  # noqa: B018
