"""The list of planned runs has the order of their jobs."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from kvfidelity.pipeline.planned_runs import write_planned_runs
from kvfidelity.records.grid import dialogue_of, run_keys
from kvfidelity.worker.job import PLANNED_RUNS
from tests.analysis.synthetic import settings


def test_runs_of_a_dialogue_stand_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs come dialogue by dialogue; a run in another order would not be computed when its job
    asks for it."""
    monkeypatch.chdir(tmp_path)
    PLANNED_RUNS.parent.mkdir(parents=True, exist_ok=True)
    chosen = settings(3)
    runs = run_keys(chosen)
    write_planned_runs(chosen, reversed(runs[1:]))
    written = json.loads(PLANNED_RUNS.read_text(encoding="utf-8"))["runs"]
    assert sorted(written) == sorted(runs[1:])
    assert len([key for key, _ in groupby(written, dialogue_of)]) == 3
