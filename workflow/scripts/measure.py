"""Measure the text of the replies of a dialogue's runs."""

import argparse
from dataclasses import asdict
from pathlib import Path

from kvfidelity.cli import main_guard

#: What is read of the turns.
COLUMNS = ("turn", "prompt", "reply", "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", required=True, nargs="+", type=Path, help="of each run")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    import polars as pl

    from kvfidelity.metrics.text import text_metrics
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import read_parquet, write_parquet
    from kvfidelity.records.columns import METRICS
    from kvfidelity.records.grid import run_of_file

    rows = [
        {"run": run_of_file(file), "turn": row["turn"]}
        | asdict(text_metrics(row["reply"], row["prompt"], row["reference"]))
        for file in options.turns
        for row in read_parquet(file, kind="turns", columns=COLUMNS).iter_rows(named=True)
    ]
    frame = pl.DataFrame(rows, METRICS)
    notes = notes_of("measure", turns=options.turns)
    write_parquet(frame, options.out, kind="metrics", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
