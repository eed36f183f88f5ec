"""What all tests share: threads that sleep at barriers, for test machines are busy, and the inputs
of the default run."""

import os

import pytest
from hypothesis import settings

from tests.default_run import default_inputs
from tests.repeated import TIMES

__all__ = ["default_inputs"]

# A busy machine is not an error. Properties that take milliseconds ask for more examples.
settings.register_profile("tests", deadline=None, max_examples=50 * TIMES)
settings.load_profile("tests")

# Read when torch is first imported, so it must be set before any test module imports it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # each process has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Under `make test`, a make that a test runs would be a sub-make, which prints other lines.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: else one process ends with them while the others have nothing to do."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("long")
    return float(marker.args[0]) if marker else 0.0
