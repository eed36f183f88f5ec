"""Several models in one grid: a worker loads each once, though jobs of all are ready from the
start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import Project, environment

#: One run after another, those of both models.
RUNS = {"policies": ["baseline", "streaming"], "positions": ["stale"]}


@pytest.mark.long(30)
def test_a_worker_does_not_take_turns_between_models(two_models: Project, tmp_path: Path) -> None:
    """On one stand-in GPU: a worker for a missing one computes on the CPU. test_gpus.py has two."""
    project = two_models.copy(tmp_path / "project")
    project.reconfigure({"grid": RUNS})
    arguments = ("--cores", "2", "only_generate", "--resources", "gpu=1")
    visible = {"CUDA_VISIBLE_DEVICES": "0"}
    done = forked.run(arguments, project.folder, environment() | visible, 3 * LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [log.read_text() for log in (project.folder / "logs/generate").rglob("*.log")]
    assert len(logs) == 8
    assert sum(log.count("loading") for log in logs) <= 2
