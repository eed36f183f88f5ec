"""Check every artifact of a results folder; name what is damaged, misplaced, left over or stale."""

import argparse
import sys
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", default=Path("results"), type=Path)
    parser.add_argument(
        "--remove", action="store_true", help="delete what is found, but for what is only stale"
    )
    options = parser.parse_args()
    from kvfidelity.verify import State, verify

    count, found = verify(options.results)
    for finding in found:
        print(finding)
        if options.remove and finding.state != State.STALE:
            finding.path.unlink()
    wrong = sum(finding.state != State.STALE for finding in found)
    print(f"{count} files, {wrong} wrong, {len(found) - wrong} stale")
    if found and not options.remove:
        print("remedy: make verify ARGS=--remove deletes what is wrong; make run makes it anew")
    sys.exit(1 if found and not options.remove else 0)


if __name__ == "__main__":
    main_guard(main)
