"""Run one dialogue through one model under one policy."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from kvfidelity.cli import main_guard
from kvfidelity.worker.client import JobFailedError, ask
from kvfidelity.worker.finished import FOLDER, Finished
from kvfidelity.worker.job import Generator, Hello, Request
from kvfidelity.worker.lanes import lane
from kvfidelity.worker.place import scheduler_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="RunSpec as JSON")
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prefix-memory", default="2GiB")
    parser.add_argument("--fingerprint", default="")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--dialogue", required=True, help='ordinal in the pool, such as "000"')
    parser.add_argument("--turns", required=True, type=Path)
    parser.add_argument("--evictions", required=True, type=Path)
    parser.add_argument("--recall", required=True, type=Path)
    parser.add_argument("--at-once", type=int, default=1, help="such jobs on this machine")
    parser.add_argument("--no-worker", action="store_true", help="load the model in this process")
    given = parser.parse_args()
    provenance = given.model_dir / "provenance.json"
    revision = provenance.read_text(encoding="utf-8") if provenance.is_file() else ""
    if given.model_dir.is_dir():
        # A model that was fetched anew, same source or not, is another one to a warm worker.
        place = given.model_dir.stat()
        revision += f"{place.st_ino} {place.st_mtime_ns}"
    hello = Hello(
        model_dir=str(given.model_dir.resolve()),
        model_revision=revision,
        dtype=given.dtype,
        device=given.device,
        fingerprint=given.fingerprint,
        prefix_memory=given.prefix_memory,
        threads=given.threads,
    )
    request = Request(
        spec=given.spec,
        pool=str(given.pool.resolve()),
        dialogue=given.dialogue,
        turns=str(given.turns.resolve()),
        evictions=str(given.evictions.resolve()),
        recall=str(given.recall.resolve()),
    )
    finished = Finished(FOLDER) if scheduler_job() else None
    if finished and finished.take(hello, request):
        print(f"took {given.turns.parent} from an earlier job that was cut short", file=sys.stderr)
        return
    with lane(given.at_once, given.device) as environment:
        os.environ |= environment
        run(hello, request, given.no_worker)
    if finished:
        finished.keep(hello, request)
    print(f"wrote {given.turns}, {given.evictions} and {given.recall}", file=sys.stderr)


def run(hello: Hello, request: Request, no_worker: bool) -> None:
    """Have the request served, by a worker or here."""
    if no_worker:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the worker has it
        Generator(hello).serve(request, show)
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
            print(line.format(**event), file=sys.stderr, flush=True)
        case "loading":
            print(f"loading {event['model']} (worker {event['pid']})", file=sys.stderr, flush=True)
        case "log":
            print(event["text"], file=sys.stderr, flush=True)
        case "worker_lost":
            print("the worker died; starting another", file=sys.stderr, flush=True)
        case name:
            print(str(name).replace("_", " "), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main_guard(main)
