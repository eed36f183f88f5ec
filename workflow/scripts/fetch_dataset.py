"""Fetch a dataset's file into a folder."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--record", required=True, type=Path, help="copy of its provenance.json")
    options = parser.parse_args()
    from kvfidelity.atomic_files import copy_file
    from kvfidelity.dialogues.fetch import PROVENANCE, fetch_dataset

    fetch_dataset(options.spec, options.out)
    copy_file(options.out / PROVENANCE, options.record)


if __name__ == "__main__":
    main_guard(main)
