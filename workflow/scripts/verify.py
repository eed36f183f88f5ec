"""Check every artifact of a results folder; name what is damaged, misplaced, left over or stale."""

import argparse
import sys
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", default=Path("results"), type=Path)
    parser.add_argument(
        "--remove",
        action="store_true",
        help="move what is found to RESULTS.removed/TIME, except for what is only stale",
    )
    parser.add_argument(
        "--force", action="store_true", help="with --remove: however many files look damaged"
    )
    options = parser.parse_args()
    from kvfidelity.aside import MOVED, move_aside
    from kvfidelity.verify import verify

    count, found = verify(options.results)
    for finding in found:
        print(finding)
    wrong = sum(finding.state in MOVED for finding in found)
    print(f"{count} files, {wrong} wrong, {len(found) - wrong} stale")
    if wrong and options.remove:
        moved, folder = move_aside(found, options.results, files=count, force=options.force)
        print(f"moved {moved} files to {folder}; make run writes those that are missing")
    elif wrong:
        print("remedy: make verify ARGS=--remove moves it aside; make run writes what is missing")
    elif found:
        print("remedy: make run writes it again, if it is part of the configuration")
    sys.exit(1 if found and not options.remove else 0)


if __name__ == "__main__":
    main_guard(main)
