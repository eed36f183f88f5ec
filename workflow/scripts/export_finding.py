"""Publish a finished run in docs/findings: export_finding.py RESULTS --finding NAME."""

import argparse
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the folder of the run's results")
    parser.add_argument("--finding", required=True, help="its name in kvfidelity.findings.plan")
    parser.add_argument("--docs", type=Path, default=Path("docs/findings"))
    parser.add_argument("--label", default="", help='such as "small run on a CPU"')
    parser.add_argument(
        "--shared",
        action="store_true",
        help="other work ran on its GPU or cores: the page calls its minutes upper bounds",
    )
    parser.add_argument(
        "--repetition",
        action="store_true",
        help="RESULTS is a second run of what is published: publish how far the two differ",
    )
    options = parser.parse_args()
    from kvfidelity.findings.export import export_repetition, export_run

    if options.repetition:
        folders = export_repetition(options.results, options.finding, options.docs)
    else:
        folders = export_run(
            options.results, options.finding, options.docs, options.label, options.shared
        )
    for folder in folders:
        print(folder)


if __name__ == "__main__":
    main_guard(main)
