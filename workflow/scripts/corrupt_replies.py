"""Choose good replies of a dataset and make corruptions of them."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--spec", required=True, type=json.loads, help="as JSON")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.judges.corruptions import corrupt_replies
    from kvfidelity.records.artifacts import read_parquet, write_parquet

    pool = read_parquet(options.pool, kind="dialogues").select("ordinal", "turns")
    names = ("replies", "max_words", "max_context_words", "seed")
    texts = corrupt_replies(pool.to_dicts(), **{name: options.spec[name] for name in names})
    write_parquet(texts, options.out, kind="corruptions")


if __name__ == "__main__":
    main_guard(main)
