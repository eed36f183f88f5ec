"""Gather all artifacts into tidy tables."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.tables import gather
    from kvfidelity.artifacts import replacing, write_parquet
    from kvfidelity.staleness import Expectations, note_of_all, notes_of, refuse_stale

    expected = Expectations(options.settings, options.results)
    refuse_stale(expected)
    notes = notes_of("aggregate", options.settings) | note_of_all(expected.inputs_of_tables())
    for name, table in gather(options.settings, options.results).items():
        write_parquet(table, options.out / f"{name}.parquet", kind=name, metadata=notes)
        if name not in ("turns", "evictions", "verdicts", "recall"):  # those are for programs
            with replacing(options.out / f"{name}.csv") as temporary:
                table.write_csv(temporary)


if __name__ == "__main__":
    main_guard(main)
