"""Compare replies in both orders: runs' with their baseline's, or good ones with corruptions."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", nargs="+", type=Path, help="of each run of a dialogue")
    parser.add_argument("--texts", type=Path, help="good replies and corruptions, instead of runs")
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--run-time", required=True, type=Path, help="says how it is asked")
    parser.add_argument("--batch-record", nargs="*", help="record of an earlier batch")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.judges.comparison import comparisons_frame
    from kvfidelity.judges.registry import build_judge
    from kvfidelity.judges.reliability import compare_corruptions
    from kvfidelity.judges.replies import baselines_of, read_turns
    from kvfidelity.judges.run_time import read_run_time
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import read_parquet, write_parquet
    from kvfidelity.records.grid import run_of_file

    batch, from_batch = bool(options.spec.get("batch")), bool(options.batch_record)
    judge = build_judge(
        options.name,
        options.spec,
        options.rubric,
        *read_run_time(options.run_time, options.name),
        batch=batch,
        from_batch=from_batch,
    )
    if options.texts:
        found = compare_corruptions(judge, read_parquet(options.texts, kind="corruptions"))
        write_parquet(found, options.out, kind="pairs")
    else:
        rows = {run_of_file(file): read_turns(file) for file in options.turns}
        others = {run: other for run, other in baselines_of(rows).items() if run != other}
        found = judge.compare([(rows[run], rows[other]) for run, other in others.items()])
        notes = notes_of("judge", options.spec, rubric=options.rubric, turns=options.turns)
        frame = comparisons_frame(dict(zip(others, found, strict=True)))
        write_parquet(frame, options.out, kind="comparisons", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
