"""Compare two finished runs, given by their names or folders: compare.py A B [--out FILE]."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("one", metavar="A")
    parser.add_argument("other", metavar="B")
    parser.add_argument("--out", type=Path, help="write there instead of printing")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from kvfidelity.analysis.statistics import INTERVAL_OPTIONS
    from kvfidelity.atomic_files import write_text
    from kvfidelity.pipeline.run_folders import folder_of
    from kvfidelity.report.compare import compare

    chosen = {name: getattr(options, name) for name in INTERVAL_OPTIONS}
    text = compare(folder_of(options.one), folder_of(options.other), chosen)
    if options.out:
        write_text(options.out, text)
    else:
        print(text)


if __name__ == "__main__":
    main_guard(main)
