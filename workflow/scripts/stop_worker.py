"""End the workflow's warm workers, if there are any."""

import argparse

from kvfidelity.cli import main_guard
from kvfidelity.worker.client import stop
from kvfidelity.worker.finished import FOLDER, Finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ended-well", action="store_true", help="forget runs that killed jobs had finished"
    )
    given = parser.parse_args()
    stop()
    if given.ended_well:
        Finished(FOLDER).forget()


if __name__ == "__main__":
    main_guard(main)
