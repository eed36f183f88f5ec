"""Judge the replies of a run."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", required=True, type=Path)
    parser.add_argument("--metrics", required=True, type=Path)
    parser.add_argument("--baseline", nargs="*", type=Path, help="turns whose replies are shown")
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--limits", default={}, type=json.loads, help="limits and prices, as JSON")
    parser.add_argument("--store", required=True, type=Path, help="folder of paid answers")
    parser.add_argument("--batch-record", nargs="*", help="record of an earlier batch")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.judges.registry import build_judge
    from kvfidelity.judges.replies import read_replies
    from kvfidelity.judges.verdict import verdicts_frame
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import write_parquet

    judge = build_judge(
        options.name,
        options.spec,
        options.rubric,
        options.limits,
        options.store,
        from_batch=bool(options.batch_record),
    )
    baseline = options.baseline[0] if options.baseline else None
    verdicts = judge.judge(read_replies(options.turns, options.metrics, baseline))
    files = {name: getattr(options, name) for name in ("turns", "metrics", "rubric")}
    if baseline:
        files["baseline"] = baseline
    notes = notes_of("judge", options.spec, **files)
    write_parquet(verdicts_frame(verdicts), options.out, kind="verdicts", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
