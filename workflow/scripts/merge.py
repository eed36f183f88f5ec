"""Put the results of several folders into one."""

import argparse
import json
import sys
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_json
    from kvfidelity.pipeline.merge import merge

    account = merge(options.settings, options.out)
    for folder, count in account["runs"].items():
        print(f"{count} runs from {folder}", file=sys.stderr)
    if account["also_in"]:
        print(
            f"{len(account['also_in'])} runs are in several folders, of which "
            f"{len(account['differing'])} differ; the first folder's were taken",
            file=sys.stderr,
        )
    write_json(options.out / "merge.json", account)


if __name__ == "__main__":
    main_guard(main)
