"""Appraise the judges: tables of their reliability, of their comparisons and of what they cost."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--trials", nargs="*", type=Path, default=[])
    parser.add_argument("--pairs", nargs="*", type=Path, default=[])
    parser.add_argument("--results", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.comparisons import compared, gather_comparisons, pairs_told
    from kvfidelity.analysis.reliability import costs, gather_planted, reliability
    from kvfidelity.analysis.table_files import write_table
    from kvfidelity.artifacts import read_parquet
    from kvfidelity.judge.pairwise import PLANTED
    from kvfidelity.judge.verdict import TRIAL
    from kvfidelity.staleness import notes_of

    folder = options.results / "tables"
    verdicts = read_parquet(folder / "verdicts.parquet", kind="verdicts")
    trials = gather_planted(options.trials, "trial", TRIAL)
    pairs = gather_planted(options.pairs, "pairs", PLANTED)
    comparisons = gather_comparisons(options.settings, options.results)
    names = ("confidence", "resamples", "seed")
    chosen = {name: options.settings["report"][name] for name in names}
    table = reliability(trials, verdicts, chosen)
    tables = {
        "reliability": table.vstack(pairs_told(pairs, table.schema, chosen)),
        "comparisons": compared(comparisons, chosen),
        "costs": costs(
            {
                "replies of the run": verdicts,
                "planted replies": trials,
                "pairs of the run": comparisons,
                "planted pairs": pairs,
            }
        ),
    }
    notes = notes_of("appraise", options.settings)
    for name, content in tables.items():
        write_table(folder, name, content, notes)


if __name__ == "__main__":
    main_guard(main)
