"""Judge the replies of a dialogue's runs."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", required=True, nargs="+", type=Path, help="of each run")
    parser.add_argument("--metrics", required=True, type=Path, help="of all of them")
    parser.add_argument("--history", choices=["own", "baseline"], help="the replies it is shown")
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--run-time", required=True, type=Path, help="says how it is asked")
    parser.add_argument("--batch-record", nargs="*", help="record of an earlier batch")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.judges.registry import build_judge
    from kvfidelity.judges.replies import read_replies
    from kvfidelity.judges.run_time import read_run_time
    from kvfidelity.judges.verdict import verdicts_frame
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import write_parquet

    judge = build_judge(
        options.name,
        options.spec,
        options.rubric,
        *read_run_time(options.run_time, options.name),
        from_batch=bool(options.batch_record),
    )
    shows_baseline = options.history == "baseline"
    replies = read_replies(options.turns, options.metrics, baseline_history=shows_baseline)
    verdicts = dict(zip(replies, judge.judge_runs(list(replies.values())), strict=True))
    files = {name: getattr(options, name) for name in ("turns", "metrics", "rubric")}
    notes = notes_of("judge", options.spec, **files)
    write_parquet(verdicts_frame(verdicts), options.out, kind="verdicts", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
