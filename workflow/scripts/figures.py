"""Draw the report's figures."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.report.figure_registry import charts, read_tables
    from kvfidelity.report.theme import save

    for name, chart in charts(read_tables(options.tables)).items():
        save(chart, options.out, name)


if __name__ == "__main__":
    main_guard(main)
