"""The runs that a workflow will make, so that a worker can compute several of them together.

The Snakefile writes the list when a workflow starts. A generate job reads it when its worker asks
which runs follow. The list only saves time: a run's artifact is written for its own job, from a
result that was computed with exactly that job's parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import write_json
from kvfidelity.pipeline.rule_params import generation_parameters
from kvfidelity.records.grid import RunKey, run_keys
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


def runs_after(run: str, results: Path, limit: int) -> list[dict[str, str]]:
    """The planned runs after `run` that have no artifacts yet: its dialogue first, its model only.

    Args:
        results: the folder of results; it tells which runs are made.
        limit: most runs to return.

    Returns:
        For each `spec`, `pool` and `dialogue` of `worker.job.GenerateJob`; an empty list where
        there is no list of planned runs.
    """
    try:
        content = json.loads(PLANNED_RUNS.read_text(encoding="utf-8"))
        written_ns = PLANNED_RUNS.stat().st_mtime_ns
    except (OSError, ValueError):
        return []
    settings, own = content["settings"], RunKey.from_path(run)
    keys = [RunKey.from_path(path) for path in content["runs"] if path != run]
    keys = [key for key in keys if key.model == own.model]
    mine = [key for key in keys if (key.dataset, key.dialogue) == (own.dataset, own.dialogue)]
    following: list[dict[str, str]] = []
    for key in [*mine, *(key for key in keys if key not in mine)]:
        if len(following) == limit:
            break
        if _is_made(results / "generate" / key.path() / "turns.parquet", written_ns):
            continue
        pool = results / "dialogues" / key.model / key.dataset / "pool.parquet"
        following.append(
            {
                "spec": generation_parameters(settings, results, key),
                "pool": str(pool.resolve()),
                "dialogue": key.dialogue,
            }
        )
    return following


def _is_made(turns: Path, since_ns: int) -> bool:
    return turns.is_file() and turns.stat().st_mtime_ns >= since_ns
