"""Fetch a model into a directory that loads fast."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.models.acquire import acquire

    acquire(options.spec, options.out)


if __name__ == "__main__":
    main_guard(main)
