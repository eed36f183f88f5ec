"""End the workflow's warm workers, if there are any."""

import argparse

from kvfidelity.cli import main_guard
from kvfidelity.worker.client import stop
from kvfidelity.worker.salvage import FOLDER, SalvagedRuns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ended-well", action="store_true", help="forget runs that killed jobs had finished"
    )
    options = parser.parse_args()
    stop()
    if options.ended_well:
        SalvagedRuns(FOLDER).clear()


if __name__ == "__main__":
    main_guard(main)
