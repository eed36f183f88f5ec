"""Stop the workflow's workers, if there are any."""

import argparse

from kvfidelity.cli import main_guard
from kvfidelity.worker.client import stop
from kvfidelity.worker.salvage import FOLDER, SalvagedRuns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ended-well",
        action="store_true",
        help="also delete the runs kept from killed jobs",
    )
    options = parser.parse_args()
    stop()
    if options.ended_well:
        SalvagedRuns(FOLDER).clear()


if __name__ == "__main__":
    main_guard(main)
