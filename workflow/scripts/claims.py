"""Judge the claims, and write the tables for papers."""

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
    from kvfidelity.analysis.claims import evaluate_claims, read_claims
    from kvfidelity.analysis.table_files import write_table
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import read_parquet, write_text
    from kvfidelity.report import paper_tables

    def table(name: str):
        return read_parquet(options.tables / f"{name}.parquet", kind=name)

    tables = {name: table(name) for name in ("turns", "verdicts", "window", "recall")}
    claims = evaluate_claims(read_claims(options.claims), tables, options.settings)
    write_table(options.tables, "claims", claims, notes_of("claims", options.settings))
    made = {
        "claims": paper_tables.claim_table(claims),
        "policies": paper_tables.policy_table(table("policies")),
        "contrasts": paper_tables.contrast_table(table("contrasts")),
        "recall_by_depth": paper_tables.recall_table(table("recall_by_depth")),
    }
    captions = {
        "claims": "Claims and what the data say of them",
        "policies": "Excess NLL (nats per reference token) over the never evicted run",
        "recall_by_depth": "Share of questions answered right by the depth of what they ask for",
        "contrasts": "Paired differences in excess NLL on the same dialogue and turn",
    }
    for name, (head, rows) in made.items():
        write_text(options.tables / f"{name}.md", paper_tables.markdown(head, rows))
        write_text(options.tables / f"{name}.tex", paper_tables.latex(head, rows, captions[name]))


if __name__ == "__main__":
    main_guard(main)
