"""Ask for all of a judge's answers together, through the Batch API."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", required=True, nargs="+", help="paths of runs below a stage")
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--pace", default={}, type=json.loads, help="limits and prices, as JSON")
    parser.add_argument("--store", required=True, type=Path, help="folder of paid answers")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from collections import Counter

    from kvfidelity.artifacts import write_json
    from kvfidelity.judge.remote import RemoteJudge
    from kvfidelity.judge.replies import read_replies
    from kvfidelity.judge.rubric import Rubric
    from kvfidelity.judge.sending import asker_for

    asker = asker_for(options.name, options.spec, options.pace, options.store, batch=True)
    judge = RemoteJudge(options.name, options.spec, Rubric.read(options.rubric), asker)
    runs = [
        read_replies(
            options.results / "generate" / run / "turns.parquet",
            options.results / "metrics" / run / "metrics.parquet",
        )
        for run in options.runs
    ]
    verdicts = judge.judge_runs(runs)
    counts = Counter(verdict.status for verdict in verdicts)
    write_json(options.out, {"judge": options.name, "verdicts": dict(counts)})


if __name__ == "__main__":
    main_guard(main)
