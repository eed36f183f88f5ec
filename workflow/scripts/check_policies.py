"""Import the files with user-defined policies and build those that the configuration names."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, type=json.loads, help="files and policies")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.cache.policies.registry import build_policy
    from kvfidelity.records.artifacts import write_json

    files = [Path(file) for file in options.spec["files"]]
    faults = []
    for name, entry in options.spec["policies"].items():
        parameters = {key: value for key, value in entry.items() if key != "kind"}
        try:
            build_policy(entry["kind"], parameters, files)
        except UserError as error:
            faults.append(f"policies.{name}: {error}")
    if faults:
        raise UserError("\n".join(faults))
    write_json(options.out, options.spec)


if __name__ == "__main__":
    main_guard(main)
