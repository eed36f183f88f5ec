"""Test a judge on good replies and corruptions of them."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", required=True, type=Path)
    parser.add_argument("--likelihood", nargs="*", type=Path, help="for a judge that needs it")
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--run-time", required=True, type=Path, help="says how it is asked")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.judges.reliability import judge_corruptions
    from kvfidelity.judges.run_time import read_run_time
    from kvfidelity.records.artifacts import read_parquet, write_parquet

    texts = read_parquet(options.texts, kind="corruptions")
    for file in options.likelihood or []:
        known = read_parquet(file, kind="likelihood")
        texts = texts.join(known, on=["item", "kind"], how="left", maintain_order="left")
    limits, store = read_run_time(options.run_time, options.name)
    verdicts = judge_corruptions(options.name, options.spec, options.rubric, limits, store, texts)
    write_parquet(verdicts, options.out, kind="judge_test")


if __name__ == "__main__":
    main_guard(main)
