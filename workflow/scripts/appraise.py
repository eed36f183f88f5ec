"""Appraise the judges: tables of their reliability and of what they cost."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--trials", nargs="*", type=Path, default=[])
    parser.add_argument("--tables", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.reliability import costs, gather_trials, reliability
    from kvfidelity.artifacts import read_parquet, replacing, write_parquet

    trials = gather_trials(options.trials)
    verdicts = read_parquet(options.tables / "verdicts.parquet", kind="verdicts")
    names = ("confidence", "resamples", "seed")
    chosen = {name: options.settings[name] for name in names}
    tables = {
        "reliability": reliability(trials, verdicts, chosen),
        "costs": costs(trials, verdicts),
    }
    for name, table in tables.items():
        write_parquet(table, options.tables / f"{name}.parquet", kind=name)
        with replacing(options.tables / f"{name}.csv") as temporary:
            table.write_csv(temporary)


if __name__ == "__main__":
    main_guard(main)
