"""Run one dialogue through one model under one policy."""

import argparse
import sys
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.worker.command import add_model_options, have_done, hello_of
from kvfidelity.worker.finished import FOLDER, Finished
from kvfidelity.worker.job import Request
from kvfidelity.worker.place import scheduler_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="RunSpec as JSON")
    add_model_options(parser)
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--dialogue", required=True, help='ordinal in the pool, such as "000"')
    parser.add_argument("--turns", required=True, type=Path)
    parser.add_argument("--evictions", required=True, type=Path)
    parser.add_argument("--recall", required=True, type=Path)
    given = parser.parse_args()
    request = Request(
        spec=given.spec,
        pool=str(given.pool.resolve()),
        dialogue=given.dialogue,
        turns=str(given.turns.resolve()),
        evictions=str(given.evictions.resolve()),
        recall=str(given.recall.resolve()),
    )
    hello = hello_of(given)
    finished = Finished(FOLDER) if scheduler_job() else None
    if finished and finished.take(hello, request):
        print(f"took {given.turns.parent} from an earlier job that was cut short", file=sys.stderr)
        return
    have_done(given, request)
    if finished:
        finished.keep(hello, request)
    print(f"wrote {given.turns}, {given.evictions} and {given.recall}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
