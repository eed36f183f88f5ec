"""Draw the report's figures."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.records.artifacts import read_parquet
    from kvfidelity.report.figure_registry import TABLES, charts
    from kvfidelity.report.theme import save

    tables = {name: read_parquet(options.tables / f"{name}.parquet", kind=name) for name in TABLES}
    for name, chart in charts(tables).items():
        save(chart, options.out, name)


if __name__ == "__main__":
    main_guard(main)
