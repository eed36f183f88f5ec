"""Write tables for papers, as Markdown and LaTeX."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_text
    from kvfidelity.records.artifacts import read_parquet
    from kvfidelity.report.paper_tables import PAPER_TABLES, latex, markdown

    for name, paper in PAPER_TABLES.items():
        table = read_parquet(options.tables / f"{name}.parquet", kind=name)
        head, rows = paper.content(table)
        write_text(options.tables / f"{name}.md", markdown(head, rows))
        write_text(options.tables / f"{name}.tex", latex(head, rows, paper.caption))


if __name__ == "__main__":
    main_guard(main)
