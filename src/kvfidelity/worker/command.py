"""The command line of a worker's jobs: options, submitting, and printed progress."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kvfidelity.bounded_json import read_json
from kvfidelity.sizes import divided
from kvfidelity.worker.claims import RunClaims
from kvfidelity.worker.client import (
    THREAD_ENVIRONMENT,
    JobFailedError,
    NextRuns,
    Plan,
    Progress,
    request,
)
from kvfidelity.worker.gpus import gpu_share
from kvfidelity.worker.job import Job, WorkerConfig
from kvfidelity.worker.serving import is_serving
from kvfidelity.worker.socket_path import socket_path

#: Runs that follow a job's: at most so many, of those that a GPU has claimed or may claim.
NextRunsOf = Callable[[int, RunClaims | None], NextRuns]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of a worker: model, device, memory, batch size."""
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prefix-memory", default="50%", help="a size or a share of what is free")
    parser.add_argument("--prefix-disk", default="20GB", help="0GB stores nothing on disk")
    parser.add_argument("--store-prefixes", choices=["overflow", "all"], default="overflow")
    parser.add_argument("--code-digest", default="")
    parser.add_argument("--policies-digest", default="")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that this machine's jobs use")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="jobs that run at once in each worker"
    )
    parser.add_argument("--workers-per-gpu", type=int, default=1, help="workers on each GPU")
    parser.add_argument("--no-worker", action="store_true", help="load the model in this process")
    parser.add_argument(
        "--run-time",
        type=Path,
        help="JSON file; its section `worker` has GPUs, workers, batch size and prefix settings",
    )


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a command with `add_model_options`, those of its run-time file among them.

    Where there is no such file, as on a machine that shares no folder, the options' defaults count.
    """
    options = parser.parse_args()
    if options.run_time and options.run_time.is_file():
        vars(options).update(read_json(options.run_time)["worker"])
    return options


def submit(options: argparse.Namespace, job: Job, next_runs: NextRunsOf | None = None) -> None:
    """Do a job in the warm worker, or in this process with --no-worker.

    Args:
        next_runs: returns the runs that follow this job's; None if they are unknown.

    Raises:
        UserError: the request is wrong; the message says how.
        SystemExit: it failed otherwise; the worker's traceback is on standard error.
    """
    run = getattr(options, "run", "")
    looks_ahead = next_runs is not None and options.batch_size > 1
    ahead = run if looks_ahead else None
    workers = options.gpus * options.workers_per_gpu
    config = worker_config(options)
    with gpu_share(
        options.gpus,
        options.batch_size,
        options.device,
        ahead,
        workers_per_gpu=options.workers_per_gpu,
        serves=lambda environment: is_serving(socket_path(environment), config),
    ) as gpu:
        os.environ |= gpu.environment
        claims = None
        if looks_ahead and workers > 1:
            claims = RunClaims(gpu.number, workers, options.batch_size)
        plan = partial(_plan, next_runs, claims) if next_runs else None
        progress = partial(print_event, run=run)
        _submit(config, job, options.no_worker, progress, plan)


def _plan(next_runs: NextRunsOf, claims: RunClaims | None, limit: int) -> NextRuns:
    return next_runs(limit, claims)


def _submit(
    config: WorkerConfig,
    job: Job,
    no_worker: bool,
    progress: Progress,
    plan: Plan | None,
) -> None:
    if no_worker:
        # Here, for other jobs only ask a worker, and these imports take longer than asking.
        from kvfidelity.worker.generator import Generator, execute

        os.environ |= THREAD_ENVIRONMENT | os.environ
        execute(Generator(config), job, progress)
        return
    try:
        request(config, job, progress, plan)
    except JobFailedError as error:
        # The worker's traceback shows the cause; ours would only show this call.
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def print_event(event: dict[str, Any], run: str = "") -> None:
    """Print one line per event to standard error; lines of progress begin with the run's name."""
    match event.get("event"):
        case "turn":
            line = "turn {turn} of {turns}: {slots} cached tokens, {tokens_per_s} tokens/s"
            if event["concurrency"] > 1:
                line += (
                    " ({concurrency} runs computed together, {batch_tokens_per_s} tokens/s in all)"
                )
            named = f"{run}: " if run else ""
            print(named + line.format(**event), file=sys.stderr, flush=True)
        case "restarted":
            print(
                "memory ran out with several runs at once: this run starts again",
                file=sys.stderr,
                flush=True,
            )
        case "loading":
            print(f"loading {event['model']} (worker {event['pid']})", file=sys.stderr, flush=True)
        case "log":
            print(event["text"], file=sys.stderr, flush=True)
        case "worker_lost":
            print("the worker died; starting another", file=sys.stderr, flush=True)
        case name:
            print(str(name).replace("_", " "), file=sys.stderr, flush=True)


def worker_config(options: argparse.Namespace) -> WorkerConfig:
    """The configuration that a worker must have to do the job."""
    provenance = options.model_dir / "provenance.json"
    revision = provenance.read_text(encoding="utf-8") if provenance.is_file() else ""
    if options.model_dir.is_dir():
        # A worker must not keep the old weights when the model's folder was replaced.
        status = options.model_dir.stat()
        revision += f"{status.st_ino} {status.st_mtime_ns}"
    return WorkerConfig(
        model_dir=str(options.model_dir.resolve()),
        model_revision=revision,
        dtype=options.dtype,
        device=options.device,
        code_digest=options.code_digest,
        prefix_memory=divided(options.prefix_memory, options.workers_per_gpu),
        prefix_disk=options.prefix_disk,
        store_prefixes=options.store_prefixes,
        threads=min(options.threads * options.batch_size, len(os.sched_getaffinity(0))),
        batch_size=options.batch_size,
        policies_digest=options.policies_digest,
    )
