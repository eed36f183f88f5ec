"""Several models and GPUs in one grid: a worker loads each model once, though jobs of all are ready
from the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.conftest import after_run
from tests.workflow.project import CONFIG, Project, environment

TWO_MODELS = {
    "models": {"another": CONFIG["models"]["tiny"]},
    "datasets": {"own": {"count": 2}},
    "grid": {"policies": ["baseline", "streaming"], "positions": ["stale"]},
}


@pytest.fixture(scope="module")
def two_models(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow with two models fetched and the dialogues of both extracted."""
    pools = [f"results/dialogues/{model}/own/pool.parquet" for model in ("tiny", "another")]
    return after_run(prepared, tmp_path_factory, "two_models", *pools, changes=TWO_MODELS)


@pytest.mark.long(30)
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_worker_does_not_take_turns_between_models(
    two_models: Project, tmp_path: Path, gpus: int
) -> None:
    """Stand-in GPUs: a worker for a missing one computes on the CPU."""
    project = two_models.copy(tmp_path / "project")
    arguments = ("--cores", "2", "only_generate", "--resources", f"gpu={gpus}")
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    done = forked.run(arguments, project.folder, environment() | visible, 3 * LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [log.read_text() for log in (project.folder / "logs/generate").rglob("*.log")]
    assert len(logs) == 8
    assert sum(log.count("loading") for log in logs) <= 2 * gpus
