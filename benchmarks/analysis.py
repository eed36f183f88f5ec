"""A million synthetic turn rows from artifacts to page: seconds and peak memory.

python benchmarks/analysis.py [--rows 1000000] [--turns 200] [--folder FOLDER]

Artifacts are written first (untimed) in the schema of real runs; no model is run. A folder that
holds them already is used as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from kvfidelity.pipeline.rule_params import (  # noqa: E402
    grid_settings,
    judge_params,
    report_settings,
    run_spec,
    table_settings,
)
from kvfidelity.pipeline.staleness import notes_of  # noqa: E402
from kvfidelity.records.artifacts import PREFIX  # noqa: E402
from kvfidelity.records.columns import EVICTIONS, TURN  # noqa: E402
from kvfidelity.records.declaration import schema  # noqa: E402
from kvfidelity.records.grid import RunKey, dialogue_of, run_keys  # noqa: E402
from kvfidelity.records.questions import with_questions  # noqa: E402
from tests.analysis import synthetic  # noqa: E402

PROBES = 4  # questions at each of three depths
CELLS = 10  # three policies under three position modes, and the baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=200, help="turns of a run")
    parser.add_argument("--only", choices=["aggregate"], help="the one script to measure")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    dialogues = max(1, options.rows // (CELLS * options.turns))
    chosen = synthetic.settings(dialogues, report={"resamples": 2000})
    results = folder / "results"
    if not results.is_dir():
        write(results, chosen, options.turns)
    tables = results / "tables"
    page, report = json.dumps(report_settings(chosen)), json.dumps(chosen["report"])
    claims = ROOT / "config/claims.yaml"
    grid = json.dumps(table_settings(chosen, results))
    judging = json.dumps(grid_settings(chosen))
    figures, out = results / "figures", folder / "report.html"
    steps = {
        "aggregate": ["--settings", grid, "--results", results, "--out", tables],
        "judge_reliability": ["--settings", judging, "--results", results],
        "claims": ["--settings", report, "--tables", tables, "--claims", claims],
        "paper_tables": ["--tables", tables],
        "figures": ["--tables", tables, "--out", figures],
        "report": ["--settings", page, "--results", results, "--out", out],
    }
    total, total_cpu, most = 0.0, 0.0, 0.0
    for name, arguments in steps.items():
        if options.only not in (None, name):
            continue
        start = time.perf_counter()
        peak, cpu_seconds = run_script(name, list(map(str, arguments)))
        seconds = time.perf_counter() - start
        total, total_cpu, most = total + seconds, total_cpu + cpu_seconds, max(most, peak)
        measured = f"{seconds:6.1f} s, {cpu_seconds:6.1f} s of CPU time, {peak / 2**30:5.2f} GiB"
        print(f"{name:17} {measured}", flush=True)
    size = out.stat().st_size if out.exists() else 0
    rows = dialogues * CELLS * options.turns
    times = f"{total:.1f} s, {total_cpu:.1f} s of CPU time"
    print(f"{rows} rows: {times}, {most / 2**30:.2f} GiB at most, page {size / 1e6:.1f} MB")


def run_script(name: str, arguments: list[str]) -> tuple[float, float]:
    """Peak resident bytes of one script's process, and its CPU seconds."""
    command = [sys.executable, str(ROOT / f"workflow/scripts/{name}.py"), *arguments]
    # As Snakemake starts a job of one thread: threads of BLAS wait for each other with a full load.
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed")
    bytes_each = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * bytes_each, usage.ru_utime + usage.ru_stime


def write(results: Path, chosen: dict, length: int) -> None:
    """One run of each cell is drawn, then written once per dialogue with its loss shifted."""
    drawn = {}
    judged = notes_of("judge", judge_params(chosen, "formula"))
    written = {"generate": notes_of("generate"), "metrics": notes_of("measure")}
    written["judge/formula"] = judged
    notes = {
        stage: {PREFIX + name: text for name, text in found.items()}
        for stage, found in written.items()
    }
    together: dict[tuple[str, str, str], list[pl.DataFrame]] = {}
    for number, path in enumerate(run_keys(chosen)):
        run = RunKey.from_path(path)
        cell = (run.policy, run.positions)
        kind = chosen["policies"][run.policy]["kind"]
        if cell not in drawn:
            rng = np.random.default_rng(len(drawn))
            cost = 2.0 * (run.positions == "stale")
            rows = synthetic.turn_rows(kind, cost, length, 0.0, 0.2, rng, np.random.default_rng(0))
            rows = rows.with_columns(trained_window=100_000)
            identity = {"model_revision": "synthetic", "dialogue_id": "", "kind": kind}
            identity |= run._asdict() | {"dialogue": "", "seed": int(run.seed)}
            rows = rows.with_columns(**{key: pl.lit(value) for key, value in identity.items()})
            rows = rows.select(pl.col(name).cast(kind) for name, kind in schema(*TURN).items())
            log = synthetic.eviction_rows(rows).cast(EVICTIONS)
            drawn[cell] = (
                rows,
                log,
                synthetic.metric_rows(rows, cost, rng),
                synthetic.verdict_rows(
                    rows.with_columns(dialogue=pl.lit("0")), "formula", cost, 0.0
                ),
            )
        turns, log, metrics, verdicts = drawn[cell]
        shift = np.random.default_rng(number).normal(0, 0.1) * (kind != "baseline")
        turns = turns.with_columns(
            dialogue=pl.lit(run.dialogue), reference_nll=pl.col("reference_nll") + shift
        )
        spec = json.dumps(run_spec(chosen, results, **run._asdict()))
        notes["generate"] |= {PREFIX + "spec": spec, PREFIX + "dtype": "float32"}
        turns = with_questions(turns, synthetic.recall_rows(turns, PROBES))
        for stage, name, frame in (("generate", "turns", turns), ("generate", "evictions", log)):
            file = results / stage / path / f"{name}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(file, metadata=notes[stage] | {PREFIX + "kind": name})
        for stage, name, frame in (
            ("metrics", "metrics", metrics),
            ("judge/formula", "verdicts", verdicts),
        ):
            rows = frame.select(pl.lit(path).alias("run"), pl.all())
            together.setdefault((stage, name, dialogue_of(path)), []).append(rows)
    for (stage, name, dialogue), frames in together.items():
        file = results / stage / dialogue / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pl.concat(frames).write_parquet(file, metadata=notes[stage] | {PREFIX + "kind": name})
    for model in chosen["models"]:
        for dataset, entry in chosen["datasets"].items():
            synthetic.write_pool(results / "dialogues" / model / dataset, entry["count"], 1)


if __name__ == "__main__":
    main()
