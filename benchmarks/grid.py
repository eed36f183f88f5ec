"""A grid's generate jobs by batch size, through Snakemake and its worker.

    python benchmarks/grid.py --batch-sizes 1,4,16 --dialogues 1
    python benchmarks/grid.py --gpu --configfile benchmarks/grid_h100.yaml --batch-sizes 16

For each batch size all generate jobs run again, with `--cores` and with one GPU if --gpu is given.
The model is converted and dialogues are extracted before. Seconds are those in which at least one
generate job ran, from Snakemake's log, so they include loading the model. On a GPU its use is read
once a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import yaml
from scheduling import PARTS
from startup import covered, intervals

from kvfidelity.records.artifacts import read_parquet

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("results/grid")
RUNS = RESULTS / "generate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", default="1,4,16", help="the first one is compared with")
    parser.add_argument("--configfile", type=Path, help="merged into the default configuration")
    parser.add_argument("--dialogues", type=int, help="how many; the configuration's by default")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "project"
        copy_project(folder)
        prepared = overlay(folder, options.dialogues, 1)
        snakemake(folder, options, prepared, "--until", "extract_dialogues", "check_policy")
        first: list[pl.DataFrame] = []
        for size in map(int, options.batch_sizes.split(",")):
            for name in (RUNS, RESULTS / "benchmarks", ".snakemake/log"):
                shutil.rmtree(folder / name, ignore_errors=True)
            load = os.getloadavg()[0]
            with used_share(options.gpu) as shares:
                snakemake(folder, options, overlay(folder, options.dialogues, size))
            [log] = (folder / ".snakemake/log").glob("*.log")
            seconds = covered(intervals(log.read_text(encoding="utf-8"))["generate"])
            turns = [
                read_parquet(file, kind="turns")
                for file in sorted((folder / RUNS).rglob("turns.parquet"))
            ]
            first = first or turns
            most = max(int(frame["concurrency"].max() or 1) for frame in turns)  # type: ignore[arg-type]
            busy = f"; GPU {sum(shares) / len(shares):.0f}% busy" if shares else ""
            table.append((size, seconds))
            print(
                f"| batch_size {size} | {len(turns)} runs, {seconds:.0f} s, "
                f"{table[0][1] / seconds:.2f} times the speed of batch_size {table[0][0]}{busy}; "
                f"up to {most} at once; load before {load:.1f}; {differences(first, turns)} |",
                flush=True,
            )


def copy_project(folder: Path) -> None:
    """The workflow's own files, and what was fetched already."""
    for part in (*PARTS, "config", "benchmarks", "resources"):
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def overlay(folder: Path, dialogues: int | None, batch_size: int) -> Path:
    """A configuration with this batch size."""
    changes: dict[str, object] = {"run": RESULTS.name, "session": {"batch_size": batch_size}}
    if dialogues is not None:
        default = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
        changes["datasets"] = {name: {"count": dialogues} for name in default["datasets"]}
    file = folder / "batch.yaml"
    file.write_text(yaml.safe_dump(changes), encoding="utf-8")
    return file


def snakemake(folder: Path, options: argparse.Namespace, config: Path, *arguments: str) -> None:
    """Run the generate jobs, or with `arguments` what comes before them."""
    command = [sys.executable, "-m", "snakemake", "--cores", str(options.cores)]
    command += ["--resources", "gpu=1"] if options.gpu else []
    files = [ROOT / "config/config.yaml", *filter(None, [options.configfile]), config]
    command += ["--configfile", *(str(Path(file).resolve()) for file in files)]
    done = subprocess.run(
        [*command, *arguments, "--", "only_generate"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


@contextmanager
def used_share(gpu: bool) -> Iterator[list[int]]:
    """Inside, a list grows by the GPU's use in percent, each second."""
    shares: list[int] = []
    if not gpu:
        yield shares
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    watcher = subprocess.Popen([*query, "-l", "1"], stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        watcher.terminate()
        text, _ = watcher.communicate()
        shares += [int(line) for line in text.split() if line.isdigit()]


def differences(first: list[pl.DataFrame], turns: list[pl.DataFrame]) -> str:
    """Whether the runs have the same replies, and the largest difference of an NLL."""
    pairs = list(zip(first, turns, strict=True))
    same = sum(one["reply"].equals(other["reply"]) for one, other in pairs)
    nats = [(one["reference_nll"] - other["reference_nll"]).abs().max() for one, other in pairs]
    largest = max((float(value) for value in nats if value is not None), default=0.0)  # type: ignore[arg-type]
    return f"equal replies in {same} of {len(pairs)}, nats differ by at most {largest:.0e}"


if __name__ == "__main__":
    main()
