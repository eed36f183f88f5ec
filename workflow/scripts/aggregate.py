"""Gather all artifacts into tidy tables."""

import argparse
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.table_files import write_table
    from kvfidelity.analysis.tables import build_tables
    from kvfidelity.pipeline.staleness import Expectations, notes_of, refuse_stale

    expected = Expectations(options.settings, options.results)
    refuse_stale(expected)
    notes = notes_of("aggregate", options.settings) | expected.note_of_inputs()
    written: dict[str, Future[None]] = {}
    # Hashing and compressing a million rows takes as long as a third of the statistics.
    with ThreadPoolExecutor(max_workers=1) as writer:

        def write(name, table) -> None:
            written[name] = writer.submit(write_table, options.out, name, table, notes)

        tables = build_tables(options.settings, options.results, expected.notes, on_rows=write)
        for name, table in tables.items():
            if name not in written:
                write(name, table)
    for file in written.values():
        file.result()


if __name__ == "__main__":
    main_guard(main)
