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
    parser.add_argument("--pace", default={}, type=json.loads, help="limits and prices, as JSON")
    parser.add_argument("--store", required=True, type=Path, help="folder of paid answers")
    parser.add_argument("--asked", nargs="*", help="record of the batch that asked before")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.artifacts import write_parquet
    from kvfidelity.judge.judges import judge_for
    from kvfidelity.judge.replies import read_replies
    from kvfidelity.judge.verdict import verdicts_frame
    from kvfidelity.staleness import notes_of

    judge = judge_for(
        options.name,
        options.spec,
        options.rubric,
        options.pace,
        options.store,
        asked=bool(options.asked),
    )
    verdicts = judge.judge(read_replies(options.turns, options.metrics))
    files = {name: getattr(options, name) for name in ("turns", "metrics", "rubric")}
    notes = notes_of("judge", options.spec, **files)
    write_parquet(verdicts_frame(verdicts), options.out, kind="verdicts", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
