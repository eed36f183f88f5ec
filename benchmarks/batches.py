"""The workflow's generate jobs in a batch against one by one, with the same worker and artifacts.

    python benchmarks/batches.py resources/models/smollm2-135m --batch-size 15

Five policies on the project's three dialogues, own replies of 64 tokens, evictions in every turn.
Wall time from the first client's start to the last one's end; the model is loaded before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvfidelity.dialogues.pool import KIND, pool_frame
from kvfidelity.generation.spec import RunSpec
from kvfidelity.records.artifacts import read_parquet, write_parquet
from kvfidelity.records.grid import GENERATED

ROOT = Path(__file__).resolve().parents[1]
POLICIES: dict[str, dict[str, Any]] = {
    "baseline": {"at": None, "target": None},
    "attention_top": {"parameters": {"history": "accumulated"}},
    "streaming_llm": {},
    "h2o": {},
    "tova": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch-size", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        count = write_pool(path / "pool.parquet")
        jobs = [(kind, f"{n:03}") for n in range(count) for kind in POLICIES]
        seconds, turns = {}, {}
        for batch_size in (1, options.batch_size):
            start(options, path, batch_size, *jobs[0], "warming").wait()
            started = time.perf_counter()
            running: list[subprocess.Popen[bytes]] = []
            for job in jobs:
                running.append(start(options, path, batch_size, *job, f"{batch_size}"))
                if batch_size == 1:
                    running[-1].wait()
            for job, process in zip(jobs, running, strict=True):
                if process.wait():
                    sys.exit((path / f"{batch_size}-{'-'.join(job)}.log").read_text())
            seconds[batch_size] = time.perf_counter() - started
            turns[batch_size] = [read(path / f"{batch_size}" / "-".join(job)) for job in jobs]
        subprocess.run([sys.executable, ROOT / "workflow/scripts/stop_worker.py"], cwd=path)
    tokens = sum(int(table["reply_token_count"].sum()) for table in turns[1])
    most = max(int(table["concurrency"].max()) for table in turns[options.batch_size])
    pairs = list(zip(*turns.values(), strict=True))
    same = sum(one["reply"].equals(other["reply"]) for one, other in pairs)
    for batch_size, spent in seconds.items():
        print(f"| batch size {batch_size} | {spent:.1f} s, {tokens / spent:.0f} new tokens/s |")
    print(f"| one by one against a batch | {seconds[1] / seconds[options.batch_size]:.1f} times |")
    print(f"| runs with equal replies | {same} of {len(jobs)}; up to {most} at once |")


def write_pool(file: Path) -> int:
    rows: list[dict[str, object]] = []
    for line in (ROOT / "resources/dialogues/own.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts = [part["value"] for part in record["conversations"]]
        turns = [{"user": u, "assistant": a} for u, a in zip(texts[::2], texts[1::2], strict=False)]
        columns = {"n_turns": len(turns), "n_tokens": 0, "language": "en", "source": "own"}
        rows.append({"dialogue_id": record["id"], "turns": turns, "questions": [], **columns})
    write_parquet(pool_frame(rows), file, kind=KIND)
    return len(rows)


def start(
    options: argparse.Namespace, path: Path, batch_size: int, policy: str, dialogue: str, name: str
) -> subprocess.Popen[bytes]:
    cell: dict[str, Any] = {"at": "400tok", "target": "200tok", "trigger": "step"} | POLICIES[
        policy
    ]
    spec = RunSpec(
        model="model",
        dataset="own",
        policy=policy,
        kind=policy,
        positions="original" if policy == "baseline" else "rerotated",
        threshold="t",
        replies="own",
        max_new_tokens=options.tokens,
        max_turns=6,
        score_every_run=True,
        **cell,
    )
    target = path / name / f"{policy}-{dialogue}"
    command = [sys.executable, str(ROOT / "workflow/scripts/generate.py"), "--spec", spec.to_json()]
    command += ["--model-dir", str(options.model.resolve()), "--dtype", options.dtype]
    command += ["--pool", "pool.parquet", "--dialogue", dialogue, "--batch-size", str(batch_size)]
    for kind in GENERATED:
        command += [f"--{kind}", str(target / f"{kind}.parquet")]
    with (path / f"{name}-{policy}-{dialogue}.log").open("w") as log:
        return subprocess.Popen(command, cwd=path, stderr=log)


def read(path: Path) -> Any:
    return read_parquet(path / "turns.parquet", kind="turns")


if __name__ == "__main__":
    main()
