"""Compare the replies of a run, or planted ones, with others, in both orders."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=Path)
    parser.add_argument("--never-evicted", type=Path, help="turns of the run to compare with")
    parser.add_argument("--texts", type=Path, help="planted replies, instead of both")
    parser.add_argument("--rubric", required=True, type=Path)
    parser.add_argument("--name", required=True, help="the judge's name in the config")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--pace", default={}, type=json.loads, help="limits and prices, as JSON")
    parser.add_argument("--store", required=True, type=Path, help="folder of paid answers")
    parser.add_argument("--asked", nargs="*", help="record of the batch that asked before")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.artifacts import read_parquet, write_parquet
    from kvfidelity.judge.pairwise import PairwiseJudge, comparisons_frame
    from kvfidelity.judge.replies import read_turns
    from kvfidelity.judge.rubric import Rubric
    from kvfidelity.judge.sending import asker_for
    from kvfidelity.judge.trial import compare_planted
    from kvfidelity.staleness import notes_of

    batch, asked = bool(options.spec.get("batch")), bool(options.asked)
    asker = asker_for(
        options.name, options.spec, options.pace, options.store, batch=batch, asked=asked
    )
    judge = PairwiseJudge(options.name, options.spec, Rubric.read(options.rubric), asker)
    if options.texts:
        found = compare_planted(judge, read_parquet(options.texts, kind="texts"))
        write_parquet(found, options.out, kind="pairs")
    else:
        runs = [(read_turns(options.turns), read_turns(options.never_evicted))]
        [comparisons] = judge.compare(runs)
        files = {"turns": options.turns, "baseline": options.never_evicted}
        notes = notes_of("judge", options.spec, rubric=options.rubric, **files)
        frame = comparisons_frame(comparisons)
        write_parquet(frame, options.out, kind="comparisons", metadata=notes)


if __name__ == "__main__":
    main_guard(main)
