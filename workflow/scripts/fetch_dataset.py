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
    parser.add_argument("--configured", type=Path, help="the source, as JSON")
    parser.add_argument("--source", type=Path, help="file for a copy of that")
    options = parser.parse_args()
    from kvfidelity.atomic_files import copy_file
    from kvfidelity.dialogues.fetch import PROVENANCE, fetch_dataset
    from kvfidelity.pipeline.sources import note_fetched

    fetch_dataset(options.spec, options.out)
    copy_file(options.out / PROVENANCE, options.record)
    if options.configured:
        note_fetched(options.configured, options.record, options.source)


if __name__ == "__main__":
    main_guard(main)
