"""Draw the report's figures."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis import figures
    from kvfidelity.artifacts import read_parquet, write_text

    def table(name: str):
        return read_parquet(options.tables / f"{name}.parquet", kind=name)

    turns = table("turns")
    charts = {
        "excess": figures.excess(table("policies")),
        "cache_size": figures.cache_size(turns),
        "retention": figures.retention(turns, table("evictions")),
        "by_turn": figures.by_turn(turns),
    }
    import vl_convert

    for name, chart in charts.items():
        write_text(options.out / f"{name}.svg", vl_convert.vegalite_to_svg(chart.to_json()))


if __name__ == "__main__":
    main_guard(main)
