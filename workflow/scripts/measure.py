"""Measure the text of a run's replies."""

import argparse
from dataclasses import asdict
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    import polars as pl

    from kvfidelity.metrics.text import text_metrics
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import read_parquet, write_parquet
    from kvfidelity.records.columns import METRICS

    turns = read_parquet(options.turns, kind="turns")
    rows = [
        {"turn": row["turn"]} | asdict(text_metrics(row["reply"], row["prompt"], row["reference"]))
        for row in turns.iter_rows(named=True)
    ]
    frame = pl.DataFrame(rows, METRICS)
    notes = notes_of("measure", turns=options.turns)
    write_parquet(frame, options.out, kind="metrics", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
