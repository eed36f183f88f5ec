from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.tiny import save_tiny
from tests.workflow.project import Project


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow before its first run."""
    model = save_tiny(tmp_path_factory.mktemp("model"))
    # The bundled dialogues are long in byte-sized tokens; losses count inside the window only.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))
    return Project.make(tmp_path_factory.mktemp("fresh") / "project", model)


@pytest.fixture(scope="session")
def finished(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow after a whole run."""
    project = fresh.copy(tmp_path_factory.mktemp("finished") / "project")
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of a finished run, to edit."""
    return finished.copy(tmp_path / "project")
