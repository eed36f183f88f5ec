"""Check every artifact of a results folder; name what is damaged, misplaced, left over or stale."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS",
        help="a run's folder; that of the run of the configuration if not given",
    )
    parser.add_argument(
        "--configfile",
        nargs="*",
        default=[],
        type=Path,
        help="as given to Snakemake; the default is that of the working directory",
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="move what is found to RESULTS.removed/TIME, so that the next run makes it",
    )
    parser.add_argument(
        "--force", action="store_true", help="with --remove: however many files look damaged"
    )
    options = parser.parse_args()
    from kvfidelity.pipeline.quarantine import MOVED, move_aside
    from kvfidelity.pipeline.run_folders import folder_of_files
    from kvfidelity.pipeline.settings import read_settings
    from kvfidelity.pipeline.verify import State, other_versions, verify
    from kvfidelity.pipeline.workflow_files import CONFIGURATION

    default = Path(CONFIGURATION) if Path(CONFIGURATION).is_file() else None
    known = default or options.configfile
    settings = read_settings(options.configfile, default) if known else None
    options.results = options.results or folder_of_files(settings or {}, options.configfile)
    count, found = verify(options.results, settings)
    for finding in found:
        print(finding)
    for (package, made, here), artifacts in sorted(other_versions(options.results).items()):
        print(f"note: {artifacts} artifacts were made with {package} {made}; here it is {here}")
    counts = Counter(finding.state for finding in found)
    kept = {State.STALE, State.MISSING, State.CHANGED}
    wrong = sum(number for state, number in counts.items() if state not in kept)
    print(f"{count} files, {wrong} wrong, {counts[State.STALE]} stale", end="")
    named = [state for state in (State.MISSING, State.CHANGED) if counts[state]]
    print("".join(f", {counts[state]} {state}" for state in named))
    if any(counts[state] for state in MOVED) and options.remove:
        moved, folder = move_aside(found, options.results, files=count, force=options.force)
        print(f"moved {moved} files to {folder}; make run writes those that are missing")
    elif found and not options.remove:
        print("remedy: make verify ARGS=--remove moves these aside; make run writes them again")
    sys.exit(1 if found and not options.remove else 0)


if __name__ == "__main__":
    main_guard(main)
