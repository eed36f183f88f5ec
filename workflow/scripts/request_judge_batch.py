"""Ask for all of a judge's answers together, through the Batch API."""

import argparse
import json
from collections import Counter
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="which runs there are")
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--run-time", required=True, type=Path, help="says how it is asked")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_json
    from kvfidelity.judges.registry import build_judge
    from kvfidelity.judges.replies import read_replies, read_turns
    from kvfidelity.judges.run_time import read_run_time
    from kvfidelity.records.grid import baseline_run_key, compared_run_keys, runs_by_dialogue

    limits, store = read_run_time(options.run_time, options.name)
    judge = build_judge(options.name, options.spec, options.rubric, limits, store, batch=True)
    generated, measured = options.results / "generate", options.results / "metrics"
    if options.name in options.settings["comparing"]:
        pairs = [
            tuple(
                read_turns(generated / key / "turns.parquet")
                for key in (run, baseline_run_key(options.settings, run))
            )
            for run in compared_run_keys(options.settings)
        ]
        compared = judge.compare(pairs)
        counts = Counter(comparison.status for run in compared for comparison in run)
    else:
        rows = [
            replies
            for dialogue, runs in runs_by_dialogue(options.settings).items()
            for replies in read_replies(
                [generated / run / "turns.parquet" for run in runs],
                measured / dialogue / "metrics.parquet",
                baseline_history=True,
            ).values()
        ]
        judged = judge.judge_runs(rows)
        counts = Counter(verdict.status for run in judged for verdict in run)
    write_json(options.out, {"judge": options.name, "verdicts": dict(counts)})


if __name__ == "__main__":
    main_guard(main)
