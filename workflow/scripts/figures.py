"""Draw the report's figures."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis import course, figures, tradeoffs
    from kvfidelity.analysis.recall_figure import recall_figure
    from kvfidelity.analysis.theme import save
    from kvfidelity.artifacts import read_parquet

    def table(name: str):
        return read_parquet(options.tables / f"{name}.parquet", kind=name)

    turns, policies = table("turns"), table("policies")
    charts = {
        "excess": figures.excess(policies),
        "heat_map": tradeoffs.heat_map(policies),
        "by_turn": figures.by_turn(turns),
        "recall": recall_figure(table("recall_by_depth")),
        "foretelling": tradeoffs.foretelling(table("predictors")),
        "distortion": tradeoffs.distortion(turns, table("predictors")),
        "through_window": course.through_window(table("window")),
        "cache_size": figures.cache_size(turns),
        "retention": figures.retention(turns, table("evictions")),
        "inside_turns": course.inside_turns(turns),
        "pareto": tradeoffs.pareto(policies),
        "latency": course.latency(turns),
    }
    for name, chart in charts.items():
        save(chart, options.out, name)


if __name__ == "__main__":
    main_guard(main)
