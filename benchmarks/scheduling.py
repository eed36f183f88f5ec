"""What Snakemake itself costs on a grid of 3,000 generate jobs, with the workflow's own rules.

    python benchmarks/scheduling.py [--dialogues 97] [--plan-only]

323 dialogues are 10,013 runs. The dry run is of the whole workflow. The jobs that are then run do
nothing but make their files, so that the time is that of planning, starting and recording them: no
model, no data.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from kvfidelity.pipeline.sources import Fetched

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "src", "workflow", "profiles/default", "envs", "resources/rubrics")
#: 30 cells and the baseline for each dialogue.
POLICIES = {f"random_{n}": {"kind": "random", "keep_ratio": 0.5 + n / 100} for n in range(10)}
#: Fetching and extraction, which must make what is read, are left out.
ONLY_GENERATE = ("only_generate", "--allowed-rules", "only_generate", "generate")
#: Replaces `python`: makes the files that a generate job must write.
NOTHING = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --turns|--evictions) : > "$2" ;; esac
    shift
done
"""


def project(folder: Path, dialogues: int) -> dict[str, str]:
    """A copy of the workflow that is ready to generate; the environment to run it in."""
    for part in PARTS:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / part, target)
    config = {
        "models": {"tiny": {"source": "path", "path": "tiny"}},
        "datasets": {
            "one": {
                "source": "path",
                "path": "one.jsonl",
                "format": "plain",
                "count": dialogues,
                "select": {"pool": max(64, dialogues)},
            }
        },
        "policies": {"baseline": {"kind": "baseline"}} | POLICIES,
        "thresholds": {"small": {"at": "600tok", "trigger": "turn", "target": "200tok"}},
        "judges": {"formula": {"kind": "formula", "rubric": "formula"}},
    }
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy2(ROOT / "config/claims.yaml", folder / "config/claims.yaml")
    data = Fetched("datasets", "one", config["datasets"]["one"], folder).folder
    model, pool = folder / "resources/models/tiny", folder / "results/dialogues/tiny/one"
    for made in (data, model, pool):
        made.mkdir(parents=True)
    # What is planned is checked: the file must be there.
    shutil.copy2(ROOT / "resources/dialogues/own.jsonl", folder / "one.jsonl")
    for name in ("pool.parquet", "manifest.json"):
        (pool / name).touch()
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text(NOTHING)
    python.chmod(0o755)
    return os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def leave_inputs(folder: Path) -> None:
    """Leave what generate jobs are given, so that they alone are run."""
    record = folder / "resources/provenance/models/tiny.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")


def timed(folder: Path, environment: dict[str, str], *arguments: str) -> tuple[float, float, float]:
    """Wall seconds, seconds of processor time including child processes, largest process in GB."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--quiet", "all"]
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    return time.perf_counter() - began, used, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=97)
    parser.add_argument("--plan-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    dialogues = options.dialogues
    jobs = dialogues * (3 * len(POLICIES) + 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "project"
        environment = project(folder, dialogues)
        print(
            f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {jobs} generate jobs"
        )
        timed(folder, environment, "--touch", "results/dialogues/tiny/one/pool.parquet")
        for what, arguments in (
            ("dry run of the generate jobs", ("only_generate", "-n")),
            (f"dry run of all {jobs + 2 * dialogues} jobs", ("-n",)),
            ("running the generate jobs", ONLY_GENERATE),
        )[: 2 if options.plan_only else 3]:
            if arguments == ONLY_GENERATE:
                leave_inputs(folder)
            wall, used, largest = timed(folder, environment, *arguments)
            print(f"{what}: {wall:.1f} s, processor {used:.1f} s, {largest:.2f} GB", flush=True)
        if not options.plan_only:
            print(f"{wall / jobs:.4f} s a job that is run, processor {used / jobs:.4f} s")
            files = sum(path.is_file() for path in (folder / "results").rglob("*"))
            print(f"{files / jobs:.2f} files below results for each run")


if __name__ == "__main__":
    main()
