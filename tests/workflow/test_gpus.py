"""Several models and two workers that look ahead, on two stand-in GPUs or one: no run is computed
twice."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from kvfidelity.records.artifacts import TIMINGS, read_parquet
from tests.waiting import LIMIT_S
from tests.workflow import forked
from tests.workflow.project import CONFIG, FILES_OF_A_RUN, Project, environment

MODELS, DIALOGUES, CELLS = 2, 2, 5
GRID = {
    "models": {
        "tiny": CONFIG["models"]["tiny"] | {"device": "cpu"},
        "another": CONFIG["models"]["tiny"] | {"device": "cpu"},
    },
    "datasets": {"own": {"count": DIALOGUES}},
    "session": {"batch_size": 2},
}
#: Python imports it when it starts. In a worker it notes each run that is computed, also those that
#: no job asks for. On a machine that is busy a job may come late; how long workers wait is not what
#: is tested.
NOTING = """
import json, os, sys

if "kvfidelity.worker.server" in sys.orig_argv:
    from kvfidelity.worker import batch_server
    from kvfidelity.worker.generator import Generator

    batch_server.LATE_CLIENT_S = batch_server.AHEAD_IDLE_S = {limit_s}
    compute = Generator.compute

    def noting(self, spec, pool, dialogue, *rest):
        note = [os.environ.get("KVFIDELITY_WORKER", "0"), os.getpid(), spec, dialogue]
        with open({file!r}, "a") as file:
            file.write(json.dumps(note) + chr(10))
        return compute(self, spec, pool, dialogue, *rest)

    Generator.compute = noting
"""


def computed(project: Project, gpus: int, workers_per_gpu: int) -> list[tuple[str, int, str]]:
    """Make a grid's runs: for each computation the worker, its process and the run."""
    noted = project.folder / "computed.jsonl"
    (project.folder / "noting").mkdir()
    (project.folder / "noting/sitecustomize.py").write_text(
        NOTING.replace("{file!r}", repr(str(noted))).replace("{limit_s}", str(LIMIT_S))
    )
    session = GRID["session"] | {"workers_per_gpu": workers_per_gpu}
    project.configure(GRID | {"session": session})
    arguments = ("--cores", "3", "only_generate", "--resources", f"gpu={gpus}")
    own = environment() | {
        "PYTHONPATH": str(project.folder / "noting"),
        "KVFIDELITY_WORKER_IDLE_S": str(LIMIT_S),
    }
    done = forked.run(arguments, project.folder, own, 3 * LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found = []
    for line in noted.read_text().splitlines():
        worker, pid, spec, dialogue = json.loads(line)
        names = json.loads(spec)
        cell = (names[key] for key in ("model", "policy", "positions"))
        found.append((worker, pid, "/".join((*cell, dialogue))))
    return found


@pytest.mark.long(60)
def test_two_workers_compute_each_run_once_and_load_each_model_once(
    two_models: Project, tmp_path: Path
) -> None:
    """On two GPUs, and together on one."""
    # Both models are ready at the start. One that became ready while runs of the other are computed
    # could take their place, and what was computed ahead would be lost.
    alone = two_models.copy(tmp_path / "alone")
    assert_computed_once(computed(alone, 1, 1))
    for gpus, workers_per_gpu, names in ((2, 1, {"0", "1"}), (1, 2, {".0", ".1"})):
        shared = two_models.copy(tmp_path / f"{gpus}-{workers_per_gpu}")
        found = computed(shared, gpus, workers_per_gpu)
        assert_computed_once(found)
        workers = defaultdict(set)
        for worker, pid, run in found:
            workers[worker, run.partition("/")[0]].add(pid)
        # A worker that is slow to start may be left no run of a model.
        assert {worker for worker, _ in workers} == names
        assert {model for _, model in workers} == set(GRID["models"])
        assert [len(pids) for pids in workers.values()] == [1] * len(workers)
        assert_same_artifacts(alone, shared)


def assert_computed_once(found: list[tuple[str, int, str]]) -> None:
    assert set(Counter(run for *_, run in found).values()) == {1}
    assert len(found) == MODELS * DIALOGUES * CELLS


def assert_same_artifacts(one: Project, two: Project) -> None:
    files = sorted((one.folder / "results/generate").rglob("*.parquet"))
    assert len(files) == FILES_OF_A_RUN * MODELS * DIALOGUES * CELLS
    for file in files:
        there = two.folder / file.relative_to(one.folder)
        alone, shared = (read_parquet(path, kind=file.stem) for path in (file, there))
        drop = TIMINGS & set(alone.columns)
        assert_frame_equal(alone.drop(drop), shared.drop(drop), rel_tol=1e-4, abs_tol=1e-5)
