"""Run one dialogue through one model under one policy."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kvfidelity.cli import main_guard
from kvfidelity.records.grid import RUN_FIELDS, RunKey, run_of_file
from kvfidelity.worker.claims import RunClaims
from kvfidelity.worker.client import NextRuns
from kvfidelity.worker.command import (
    NextRunsOf,
    add_model_options,
    parse_options,
    submit,
    worker_config,
)
from kvfidelity.worker.job import PLANNED_RUNS, GenerateJob
from kvfidelity.worker.salvage import FOLDER, SalvagedRuns
from kvfidelity.worker.socket_path import scheduler_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--spec",
        required=True,
        nargs="+",
        type=json.loads,
        help="RunSpec as JSON, or parts of it; what the path of the turns says is left out",
    )
    add_model_options(parser)
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--dialogue", required=True, help='ordinal in the pool, such as "000"')
    parser.add_argument("--turns", required=True, type=Path)
    parser.add_argument("--evictions", required=True, type=Path)
    options = parse_options(parser)
    if not (options.code_digest and options.policies_digest):
        # Here, for the workflow knows them, and looking at all modules takes longer than asking.
        from kvfidelity.pipeline.code_digest import policies_digest, stage_digest

        options.code_digest = options.code_digest or stage_digest("generate")
        options.policies_digest = options.policies_digest or policies_digest()
    job = GenerateJob(
        spec=specification(options.spec, run_of_file(options.turns)),
        pool=str(options.pool.resolve()),
        dialogue=options.dialogue,
        turns=str(options.turns.resolve()),
        evictions=str(options.evictions.resolve()),
    )
    options.run = run_of_file(options.turns)
    config = worker_config(options)
    salvaged = SalvagedRuns(FOLDER) if scheduler_job() else None
    if salvaged and salvaged.restore(config, job):
        print(
            f"restored {options.turns.parent} from an earlier job that was killed", file=sys.stderr
        )
        return
    submit(options, job, next_runs(options.turns) if PLANNED_RUNS.is_file() else None)
    if salvaged:
        salvaged.store(config, job)
    print(f"wrote {options.turns} and {options.evictions}", file=sys.stderr)


def specification(parts: list[dict[str, Any]], run: str) -> str:
    """A run's specification, from its parts and the names in its path."""
    spec = {name: value for part in parts for name, value in part.items()}
    if "policy" not in spec:
        names = RunKey.from_path(run)._asdict()
        del names["dialogue"]
        spec = {**names, "seed": int(names["seed"]), **spec}
    return json.dumps(spec, sort_keys=True)


def next_runs(turns: Path) -> NextRunsOf:
    """What the worker may ask for: the runs that follow the one with these turns."""
    # RESULTS/generate/RUN/turns.parquet
    run = run_of_file(turns)
    results = turns.parents[len(RUN_FIELDS) + 1]

    def following(limit: int, claims: RunClaims | None) -> NextRuns:
        # Here, for few jobs are asked, and the import takes longer than the rest of this script.
        from kvfidelity.pipeline.planned_runs import runs_after

        return runs_after(run, results, limit, claims)

    return following


if __name__ == "__main__":
    main_guard(main)
