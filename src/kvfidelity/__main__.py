"""The command `kvfidelity`."""

from __future__ import annotations

import argparse
import sys

from kvfidelity.cli import main_guard


def main() -> None:
    """Parse the arguments and run the subcommand; its status is the exit status."""
    from kvfidelity.engine_check import command

    parser = argparse.ArgumentParser(prog="kvfidelity", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help=command.__doc__, description=command.__doc__)
    command.add_arguments(check)
    check.set_defaults(run=command.run)
    options = parser.parse_args()
    main_guard(lambda: sys.exit(options.run(options)))


if __name__ == "__main__":
    main()
