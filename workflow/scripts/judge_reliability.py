"""Appraise the judges: tables of their reliability, of their comparisons and of what they cost."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--judge-tests", nargs="*", type=Path, default=[])
    parser.add_argument("--pairs", nargs="*", type=Path, default=[])
    parser.add_argument("--results", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.comparisons import (
        COLUMNS_OF_TURNS,
        comparison_table,
        gather_comparisons,
        pairwise_reliability,
    )
    from kvfidelity.analysis.reliability import costs, gather_judge_tests, reliability
    from kvfidelity.analysis.statistics import INTERVAL_OPTIONS
    from kvfidelity.analysis.table_files import write_table
    from kvfidelity.analysis.verdicts import missing_by_cell
    from kvfidelity.judges.comparison import CORRUPTION_COMPARISONS
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import read_parquet
    from kvfidelity.records.columns import CORRUPTION_VERDICTS

    folder = options.results / "tables"
    turns = read_parquet(folder / "turns.parquet", kind="turns", columns=COLUMNS_OF_TURNS)
    verdicts = read_parquet(folder / "verdicts.parquet", kind="verdicts")
    judge_tests = gather_judge_tests(options.judge_tests, "judge_test", CORRUPTION_VERDICTS)
    pairs = gather_judge_tests(options.pairs, "pairs", CORRUPTION_COMPARISONS)
    comparisons = gather_comparisons(options.settings, options.results)
    chosen = {name: options.settings["report"][name] for name in INTERVAL_OPTIONS}
    table = reliability(judge_tests, verdicts, chosen)
    tables = {
        "reliability": table.vstack(pairwise_reliability(pairs, chosen)),
        "comparisons": comparison_table(comparisons, turns, chosen),
        "missing_comparisons": missing_by_cell(comparisons, chosen, "missing_comparisons"),
        "costs": costs(
            {
                "replies of the run": verdicts,
                "corrupted replies": judge_tests,
                "pairs of the run": comparisons,
                "pairs with corrupted replies": pairs,
            }
        ),
    }
    notes = notes_of("judge_reliability", options.settings)
    for name, content in tables.items():
        write_table(folder, name, content, notes)


if __name__ == "__main__":
    main_guard(main)
