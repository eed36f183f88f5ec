"""How likely a model finds planted replies."""

import argparse
import sys
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.worker.command import add_model_options, have_done
from kvfidelity.worker.job import Scoring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    parser.add_argument("--texts", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    have_done(given, Scoring(str(given.texts.resolve()), str(given.out.resolve())))
    print(f"wrote {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
