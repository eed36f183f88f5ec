"""Write the report page."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.page import TABLES, render
    from kvfidelity.artifacts import read_parquet, write_text

    folder = options.results / "tables"
    tables = {name: read_parquet(folder / f"{name}.parquet", kind=name) for name in TABLES}
    write_text(options.out, render(options.settings, tables, options.results))


if __name__ == "__main__":
    main_guard(main)
