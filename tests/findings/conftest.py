"""Finished runs that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfidelity.findings.export import export_run
from kvfidelity.findings.plan import SMOLLM2, finding_named
from tests.findings.made import made_run
from tests.shared import made_once

#: A finding of each kind of table that is worth the seconds.
FINDINGS = ("paper_reference", "equal_budgets", "question2", "question4")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run of each of FINDINGS; read only."""

    def make(folder: Path) -> None:
        for name in FINDINGS:
            made_run(folder / name, finding_named(name), SMOLLM2)

    return made_once(tmp_path_factory, "findings", make)


@pytest.fixture(scope="session")
def docs(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published of them; read only."""

    def make(folder: Path) -> None:
        for name in FINDINGS:
            export_run(finished / name, name, folder, "synthetic numbers")

    return made_once(tmp_path_factory, "findings-docs", make)
