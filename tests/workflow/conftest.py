from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import save_tiny
from tests.shared import made_once
from tests.workflow.project import CONFIG, Project

#: What a model is fetched and dialogues are extracted for.
POOL = "results/dialogues/tiny/own/pool.parquet"
TWO_MODELS = {"models": {"another": CONFIG["models"]["tiny"]}, "datasets": {"own": {"count": 2}}}
#: What the run that made a project wrote to the console.
CONSOLE = "logs/console.txt"


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow before its first run."""

    def make(folder: Path) -> None:
        model = save_tiny(folder / "model")
        # The bundled dialogues are long in byte-sized tokens; losses count inside the window only.
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))
        Project.make(folder / "project", model)

    made = Project(made_once(tmp_path_factory, "fresh", make) / "project")
    return made.copy(tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture(scope="session")
def prepared(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow with its model fetched and its dialogues extracted."""
    return after_run(fresh, tmp_path_factory, "prepared", POOL)


@pytest.fixture(scope="session")
def finished(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow after a whole run."""
    return after_run(prepared, tmp_path_factory, "finished")


@pytest.fixture(scope="session")
def two_models(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The workflow with two models fetched, and two dialogues for each."""
    pools = [f"results/dialogues/{model}/own/pool.parquet" for model in ("tiny", "another")]
    return after_run(prepared, tmp_path_factory, "two_models", *pools, changes=TWO_MODELS)


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of a finished run, to edit."""
    return finished.copy(tmp_path / "project")


def after_run(
    before: Project,
    factory: pytest.TempPathFactory,
    name: str,
    *targets: str,
    changes: dict[str, Any] | None = None,
) -> Project:
    """A copy of a project in which Snakemake has made the targets; `changes` of its configuration.

    One of the test processes makes it, under its name.
    """

    def make(folder: Path) -> None:
        project = before.copy(folder)
        project.configure(changes or {})
        done = project.snakemake(*targets)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / CONSOLE).write_text(done.stdout + done.stderr)

    made = Project(made_once(factory, name, make))
    return made.copy(factory.mktemp(name) / "project")
