"""The command line of jobs that a worker does: which model, in which process, and what is shown."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from kvfidelity.worker.client import WAITING, JobFailedError, ask
from kvfidelity.worker.gpus import share_of_a_gpu
from kvfidelity.worker.job import Generator, Hello, Wanted, carry_out


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what a worker is for."""
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prefix-memory", default="2GiB")
    parser.add_argument("--prefix-disk", default="0GB", help="0GB keeps nothing on disk")
    parser.add_argument("--fingerprint", default="")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpus", type=int, default=1, help="that this machine's jobs use")
    parser.add_argument("--lanes", type=int, default=1, help="such jobs at once on each of them")
    parser.add_argument("--no-worker", action="store_true", help="load the model in this process")


def have_done(given: argparse.Namespace, request: Wanted) -> None:
    """Have a request served by the warm worker, or in this process if that was asked for.

    Raises:
        UserError: what is wrong with the request.
        SystemExit: it failed otherwise; the worker's traceback is written to standard error.
    """
    with share_of_a_gpu(given.gpus, given.lanes, given.device) as environment:
        os.environ |= environment
        _have_done(hello_of(given), request, given.no_worker)


def _have_done(hello: Hello, request: Wanted, no_worker: bool) -> None:
    if no_worker:
        os.environ |= WAITING | os.environ
        carry_out(Generator(hello), request, show)
        return
    try:
        ask(hello, request, show)
    except JobFailedError as error:
        # The worker's traceback tells; ours would say where we read it.
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def show(event: dict[str, Any]) -> None:
    """One plain line an event."""
    match event.get("event"):
        case "turn":
            line = "turn {turn} of {turns}: {slots} cached tokens, {tokens_per_s} tokens/s"
            if event["lanes"] > 1:
                line += " ({lanes} lanes, {lanes_tokens_per_s} tokens/s in all)"
            print(line.format(**event), file=sys.stderr, flush=True)
        case "alone":
            print("memory ran out among other runs: once more, alone", file=sys.stderr, flush=True)
        case "loading":
            print(f"loading {event['model']} (worker {event['pid']})", file=sys.stderr, flush=True)
        case "log":
            print(event["text"], file=sys.stderr, flush=True)
        case "worker_lost":
            print("the worker died; starting another", file=sys.stderr, flush=True)
        case name:
            print(str(name).replace("_", " "), file=sys.stderr, flush=True)


def hello_of(given: argparse.Namespace) -> Hello:
    """What a worker must be for to do such a job."""
    provenance = given.model_dir / "provenance.json"
    revision = provenance.read_text(encoding="utf-8") if provenance.is_file() else ""
    if given.model_dir.is_dir():
        # A model that was fetched anew, same source or not, is another one to a warm worker.
        place = given.model_dir.stat()
        revision += f"{place.st_ino} {place.st_mtime_ns}"
    return Hello(
        model_dir=str(given.model_dir.resolve()),
        model_revision=revision,
        dtype=given.dtype,
        device=given.device,
        fingerprint=given.fingerprint,
        prefix_memory=given.prefix_memory,
        prefix_disk=given.prefix_disk,
        threads=min(given.threads * given.lanes, len(os.sched_getaffinity(0))),
        lanes=given.lanes,
    )
