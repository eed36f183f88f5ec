"""Decide the claims: supported, contradicted or not decided."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="report section")
    parser.add_argument("--tables", required=True, type=Path)
    parser.add_argument("--claims", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.claims import evaluate_claims, read_claims, read_tables
    from kvfidelity.analysis.table_files import write_table
    from kvfidelity.pipeline.staleness import notes_of

    stated = read_claims(options.claims)
    claims = evaluate_claims(stated, read_tables(options.tables, stated), options.settings)
    write_table(options.tables, "claims", claims, notes_of("claims", options.settings))


if __name__ == "__main__":
    main_guard(main)
