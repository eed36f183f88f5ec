"""The runs that a workflow will make, so that a worker can compute several of them together.

The Snakefile writes the list when a workflow starts. A generate job reads it when its worker asks
which runs follow. The list only saves time: a run's artifact is written for its own job, from a
result that was computed with exactly that job's parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import write_json
from kvfidelity.pipeline.rule_params import generation_parameters
from kvfidelity.records.grid import RunKey, dialogue_of, run_keys
from kvfidelity.worker.claims import RunClaims
from kvfidelity.worker.client import NextRuns
from kvfidelity.worker.job import PLANNED_RUNS


def write_planned_runs(settings: Mapping[str, Any], planned: Iterable[str]) -> None:
    """Write the list, dialogue by dialogue: that is the order of their jobs.

    Args:
        settings: the checked configuration.
        planned: paths of the runs, in any order.
    """
    chosen = set(planned)
    runs = [run for run in run_keys(settings) if run in chosen]
    write_json(PLANNED_RUNS, {"settings": settings, "runs": runs})


def runs_after(run: str, results: Path, limit: int, claims: RunClaims | None = None) -> NextRuns:
    """The planned runs after `run` that have no artifacts yet: its dialogue first, its model only.

    Args:
        results: the folder of results; it tells which runs are made.
        limit: most runs to return.
        claims: where there are several GPUs, those of the one that `run` is on. What belongs to
            another GPU is left out, and what is returned belongs to this one from now on.

    Returns:
        No runs where there is no list of planned runs.
    """
    try:
        content = json.loads(PLANNED_RUNS.read_text(encoding="utf-8"))
        written_ns = PLANNED_RUNS.stat().st_mtime_ns
    except (OSError, ValueError):
        return NextRuns([], more=False)
    model, dialogue = RunKey.from_path(run).model, dialogue_of(run)
    of_model = [path for path in content["runs"] if path.startswith(f"{model}/") and path != run]
    planned = sorted(of_model, key=lambda path: dialogue_of(path) != dialogue)

    def is_made(path: str) -> bool:
        return _is_made(results / "generate" / path / "turns.parquet", written_ns)

    if claims is not None:
        paths, more = claims.take(planned, is_made, limit)
    else:
        paths = list(islice((path for path in planned if not is_made(path)), limit))
        more = len(paths) == limit
    settings = content["settings"]
    return NextRuns([_content(settings, results, path) for path in paths], more)


def _content(settings: Mapping[str, Any], results: Path, run: str) -> dict[str, str]:
    key = RunKey.from_path(run)
    pool = results / "dialogues" / key.model / key.dataset / "pool.parquet"
    return {
        "spec": generation_parameters(settings, results, key),
        "pool": str(pool.resolve()),
        "dialogue": key.dialogue,
    }


def _is_made(turns: Path, since_ns: int) -> bool:
    return turns.is_file() and turns.stat().st_mtime_ns >= since_ns
