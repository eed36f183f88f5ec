"""Judge the replies of a run."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", required=True, type=Path)
    parser.add_argument("--metrics", required=True, type=Path)
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--store", required=True, type=Path, help="folder of paid verdicts")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    import polars as pl
    from kvfidelity.artifacts import read_parquet, write_parquet
    from kvfidelity.judge.offline import judge_offline
    from kvfidelity.judge.verdict import verdicts_frame

    turns = read_parquet(options.turns, kind="turns")
    turns = turns.join(read_parquet(options.metrics, kind="metrics"), on="turn").sort("turn")
    # What entered the cache is what a judge is shown as the history.
    fed = pl.when(pl.col("replies") == "own").then("reply").otherwise("reference")
    rows = turns.with_columns(said=fed).to_dicts()
    if options.spec["kind"] == "offline":
        verdicts = [judge_offline(row, options.name, options.rubric.stem) for row in rows]
    else:
        from kvfidelity.judge.remote import RemoteJudge
        from kvfidelity.judge.rubric import Rubric
        from kvfidelity.judge.store import AnswerStore

        rubric, store = Rubric.read(options.rubric), AnswerStore(options.store)
        verdicts = RemoteJudge(options.name, options.spec, rubric, store).judge(rows)
    write_parquet(verdicts_frame(verdicts), options.out, kind="verdicts")


if __name__ == "__main__":
    main_guard(main)
